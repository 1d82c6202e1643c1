{{/* The form in which KubeRay writes a RayService back. The operator adds its finalizer with an update
of the whole object, and the API server makes it the owner of every field that this update changes.
Helm 4 applies on the server's side: a field that another owns and that is rendered differently is a
conflict. What is rendered in the operator's form already is not changed, and Helm stays its owner. */}}

{{/* A container's environment with each name once, as YAML: (dict "entries" LIST). The last entry of a
name wins, at the place of the first. */}}
{{- define "moe-serving.environment" -}}
{{- $names := list -}}
{{- $last := dict -}}
{{- range .entries -}}
{{- $names = append $names .name | uniq -}}
{{- $_ := set $last .name . -}}
{{- end -}}
{{- $result := list -}}
{{- range $names -}}{{- $result = append $result (get $last .) -}}{{- end -}}
{{- toYaml $result -}}
{{- end -}}

{{/* Brings a part of a RayService's spec into that form, in place: (dict "node" MAP-OR-LIST). What
Go's "omitempty" leaves out goes (null, "", an empty list, false and 0 where the type has no third
state), quantities are written as Kubernetes does, and the CRD's defaults of ports are filled in. An
empty object stays: it is a pointer in Go. */}}
{{- define "moe-serving.normal" -}}
{{- $node := .node -}}
{{- if kindIs "slice" $node -}}
{{- range $item := $node -}}
{{- if or (kindIs "map" $item) (kindIs "slice" $item) -}}
{{- include "moe-serving.normal" (dict "node" $item) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $texts := list "labels" "annotations" "nodeSelector" "matchLabels" -}}
{{- $flags := list "readOnly" "hostNetwork" "hostPID" "hostIPC" "stdin" "stdinOnce" "tty" -}}
{{- $counts := list "hostPort" "initialDelaySeconds" "timeoutSeconds" "periodSeconds" "successThreshold" "failureThreshold" -}}
{{- range $key, $value := $node -}}
{{- $empty := not $value -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $node $key -}}
{{- else if and $empty (kindIs "string" $value) -}}
{{- $_ := unset $node $key -}}
{{- else if and $empty (kindIs "slice" $value) (ne $key "nodeSelectorTerms") -}}
{{- $_ := unset $node $key -}}
{{- else if and $empty (or (has $key $flags) (has $key $counts) (has $key $texts)) -}}
{{- $_ := unset $node $key -}}
{{- else if has $key (list "requests" "limits") -}}
{{- range $name, $amount := $value -}}
{{- if kindIs "invalid" $amount -}}
{{- $_ := unset $value $name -}}
{{- else -}}
{{- $_ := set $value $name (include "moe-serving.quantity" (dict "value" $amount "name" $name)) -}}
{{- end -}}
{{- end -}}
{{- if not $value -}}{{- $_ := unset $node $key -}}{{- end -}}
{{- else if eq $key "sizeLimit" -}}
{{- $_ := set $node $key (include "moe-serving.quantity" (dict "value" $value "name" $key)) -}}
{{- else if has $key $texts -}}
{{- range $name, $text := $value -}}
{{- if kindIs "invalid" $text -}}{{- $_ := unset $value $name -}}{{- end -}}
{{- end -}}
{{- else if or (kindIs "map" $value) (kindIs "slice" $value) -}}
{{- include "moe-serving.normal" (dict "node" $value) -}}
{{- if has $key (list "containers" "initContainers") -}}
{{- range $container := $value -}}
{{- if not (hasKey $container "resources") -}}{{- $_ := set $container "resources" dict -}}{{- end -}}
{{- if $container.env -}}
{{- $_ := set $container "env" (include "moe-serving.environment" (dict "entries" $container.env) | fromYamlArray) -}}
{{- end -}}
{{- range $port := default list $container.ports -}}
{{- if not (hasKey $port "protocol") -}}{{- $_ := set $port "protocol" "TCP" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
