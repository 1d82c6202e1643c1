{{/* The form in which KubeRay writes a RayService back. The operator adds its finalizer by
updating the whole object, and the API server makes it the owner of every field that the update
changes. Helm 4 uses server-side apply, where a field that has another owner and another value is a
conflict. Fields that are rendered in the operator's form are not changed by its update, so Helm
remains their owner. */}}

{{/* Environment of a container with unique names, as YAML: (dict "entries" LIST). The last entry
of a name takes effect, at the position of the first. */}}
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

{{/* Convert a part of a RayService spec to that form, in place: (dict "node" MAP-OR-LIST).
Removes what Go's "omitempty" omits (null, "", empty lists, and false and 0 where the type is no
pointer), writes quantities in canonical form and fills in the CRD's defaults for ports. Empty
objects remain: they are pointers in Go. */}}
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
