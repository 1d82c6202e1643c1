{{/* Scheduling of pods: rendered pools, nodes, topology, DNS, batch schedulers. */}}

{{/* The pools as rendered, as a JSON list.

Ray Serve places a group on any pods that provide the pool's resource, so a property that all ranks
of a group must share (such as a network block) must be a property of a worker group. A pool with a
topology that is required per group is therefore rendered as one pool per group, NAME-0, NAME-1 and
so on, each with a worker group and a Serve application. "base" is the pool's name in the values. A
group of a single pod needs no topology. */}}
{{- define "moe-serving.pools" -}}
{{- $pools := list -}}
{{- range .Values.pools -}}
{{- $groups := 1 -}}
{{- if hasKey . "groups" -}}{{- $groups = int .groups -}}{{- end -}}
{{- $most := int (default $groups .maxGroups) -}}
{{- $topology := default (dict) .topology -}}
{{- $base := . -}}
{{- $pods := 1 -}}
{{- if $topology.required -}}
{{- $pods = int (include "moe-serving.pool" (dict "root" $ "pool" .) | fromJson).podsPerGroup -}}
{{- end -}}
{{- if and (gt $pods 1) (eq (default "group" $topology.scope) "group") (gt $most 1) -}}
{{- if gt $most $groups -}}
{{- fail (printf "pools.%s: with topology.required each group is a worker group of its pool, and there are as many as groups: set maxGroups to %d (or omit it), topology.required to false, or topology.scope to pool (all groups in one %s)" .name $groups $topology.key) -}}
{{- end -}}
{{- range $slot := until $groups -}}
{{- $one := merge (dict "name" (printf "%s-%d" $base.name $slot) "base" $base.name "groups" 1 "maxGroups" 1) (omit (deepCopy $base) "name" "groups" "maxGroups" "minAvailablePods") -}}
{{- $pools = append $pools $one -}}
{{- end -}}
{{- else -}}
{{- $pools = append $pools (merge (dict "base" .name) (deepCopy .)) -}}
{{- end -}}
{{- end -}}
{{- $pools | toJson -}}
{{- end -}}

{{/* nodeSelector and tolerations of a pool: (dict "root" $ "pool" POOL). */}}
{{- define "moe-serving.poolNodes" -}}
{{- $given := .pool -}}
{{- $selector := deepCopy (default (dict) $given.nodeSelector) -}}
{{- $tolerations := default (list) $given.tolerations -}}
{{- if $given.spot -}}
{{- $spot := dict "gke" (list "cloud.google.com/gke-spot" "true") "eks" (list "eks.amazonaws.com/capacityType" "SPOT") "aks" (list "kubernetes.azure.com/scalesetpriority" "spot") -}}
{{- with get $spot .root.Values.cloud -}}
{{- $_ := set $selector (first .) (last .) -}}
{{- $tolerations = append $tolerations (dict "key" (first .) "operator" "Equal" "value" (last .) "effect" "NoSchedule") -}}
{{- end -}}
{{- end -}}
{{- if eq $given.accelerator "gpu" -}}
{{- $tolerations = append $tolerations (dict "key" (default "nvidia.com/gpu" $given.gpuResource) "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- $result := dict -}}
{{- with $selector }}{{- $_ := set $result "nodeSelector" . }}{{- end -}}
{{- with $tolerations }}{{- $_ := set $result "tolerations" . }}{{- end -}}
{{- with $result }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Scheduling of a DaemonSet on every node of a pool, without pod affinity: (dict "root" $
"pool" POOL). */}}
{{- define "moe-serving.everyPoolNode" -}}
{{- include "moe-serving.poolNodes" . -}}
{{- with (default (dict) .pool.affinity).nodeAffinity }}
affinity:
  nodeAffinity:
    {{- toYaml . | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* Affinity of a pool's pods, including topology: (dict "root" $ "pool" POOL "component"
"ranks"). matchLabelKeys separates the two Ray clusters of a blue/green upgrade (Kubernetes 1.31 or
later). */}}
{{- define "moe-serving.poolAffinity" -}}
{{- $affinity := deepCopy (default (dict) .pool.affinity) -}}
{{- $pods := int (include "moe-serving.pool" . | fromJson).podsPerGroup -}}
{{- $topology := default (dict) .pool.topology -}}
{{- if and (le $pods 1) $topology.required (eq (default "group" $topology.scope) "group") -}}
{{- $topology = dict -}}
{{- end -}}
{{- with $topology -}}
{{- $labels := include "moe-serving.selector" (dict "root" $.root "component" $.component) | fromYaml -}}
{{- $_ := set $labels "moe-serving/pool" $.pool.base -}}
{{- if ne $.pool.base $.pool.name -}}{{- $_ := set $labels "moe-serving/group-slot" $.pool.name -}}{{- end -}}
{{- $term := dict "topologyKey" .key "labelSelector" (dict "matchLabels" $labels) -}}
{{- if eq $.component "ranks" -}}{{- $_ := set $term "matchLabelKeys" (list "ray.io/cluster") -}}{{- end -}}
{{- $pods := default (dict) $affinity.podAffinity -}}
{{- if .required -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $pods $key (append (default (list) (get $pods $key)) $term) -}}
{{- else -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $pods $key (append (default (list) (get $pods $key)) (dict "weight" 100 "podAffinityTerm" $term)) -}}
{{- end -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* All scheduling fields of a pool's pods: (dict "root" $ "pool" POOL "component" "ranks"). The
fabric check uses the same as the ranks. */}}
{{- define "moe-serving.poolPlacement" -}}
{{- $host := (default (dict) .pool.rdma).hostNetwork -}}
{{- if $host }}
hostNetwork: true
{{- end }}
{{- include "moe-serving.dns" (dict "root" .root "hostNetwork" $host) }}
{{- include "moe-serving.schedulerName" .root }}
{{- with .pool.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .pool.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with include "moe-serving.poolNodes" . }}
{{ . }}
{{- end }}
{{- include "moe-serving.poolAffinity" . }}
{{- end -}}

{{/* DNS settings of a pod: (dict "root" $ "hostNetwork" BOOL). On the host network, ClusterFirst
would use the node's resolver. */}}
{{- define "moe-serving.dns" -}}
{{- $policy := .root.Values.dnsPolicy -}}
{{- if and .hostNetwork (has $policy (list "" "ClusterFirst")) -}}
{{- $policy = "ClusterFirstWithHostNet" -}}
{{- end -}}
{{- with $policy }}
dnsPolicy: {{ . | quote }}
{{- end }}
{{- with .root.Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* schedulerName of the Ray pods. */}}
{{- define "moe-serving.schedulerName" -}}
{{- with .Values.scheduling.schedulerName }}
schedulerName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Object name that ends with a pool's name, at most 52 characters to leave room for the
suffixes of a Job's or DaemonSet's pods: (dict "root" $ "part" "fabric" "name" POOL). */}}
{{- define "moe-serving.poolObject" -}}
{{- $whole := printf "%s-%s-%s" (include "moe-serving.fullname" .root) .part .name -}}
{{- if gt (len $whole) 52 -}}
{{- printf "%s-%s" ($whole | trunc 43 | trimSuffix "-") ($whole | sha256sum | trunc 8) -}}
{{- else -}}
{{- $whole -}}
{{- end -}}
{{- end -}}

{{/* A container that sleeps until its pod is deleted, for pods of DaemonSets: (dict "root" $
"name" N "image" IMAGE). As process 1 it must install a handler for SIGTERM. */}}
{{- define "moe-serving.idle" -}}
- name: {{ .name | quote }}
  image: {{ .image | quote }}
  imagePullPolicy: {{ .pullPolicy | quote }}
  command: [python, -c, "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); signal.pause()"]
  securityContext:
    {{- include "moe-serving.containerSecurity" .root | nindent 4 }}
  resources:
    requests: {cpu: 1m, memory: 16Mi}
    limits: {memory: 64Mi}
{{- end -}}

{{/* DNS ports for a NetworkPolicy: the ports of the DNS pods, not of their Service. */}}
{{- define "moe-serving.dnsPorts" -}}
{{- range .Values.networkPolicy.dnsPorts }}
- {protocol: UDP, port: {{ . }}}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end -}}
