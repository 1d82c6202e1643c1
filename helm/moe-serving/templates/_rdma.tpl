{{/* RDMA devices and the permission to lock memory. */}}

{{/* RDMA environment of a pool's ranks, as a YAML list or empty: (dict "root" $ "pool" POOL).

NCCL_IB_HCA accepts prefixes, and exact names after a "="; NVSHMEM_HCA_LIST accepts only exact
names. Both get a list of names, and also a string that contains ports or starts with "=", because
it can only contain names. Any other string is a prefix for NCCL; NVSHMEM's list is then detected in
the pod (MOE_SERVING_RDMA_HCA), as both are if the value is unset. Variables of pools[].env take
precedence. */}}
{{- define "moe-serving.rdmaEnvironment" -}}
{{- $own := default (dict) .pool.env -}}
{{- $found := dict -}}
{{- with .pool.rdma -}}
{{- $names := "" -}}
{{- if kindIs "slice" .hca -}}
{{- $names = join "," .hca -}}
{{- else if and .hca (or (hasPrefix "=" .hca) (contains ":" .hca)) -}}
{{- $names = trimPrefix "=" .hca -}}
{{- end -}}
{{- if $names -}}
{{- $_ := set $found "NCCL_IB_HCA" (printf "=%s" $names) -}}
{{- $_ := set $found "NVSHMEM_HCA_LIST" $names -}}
{{- else if .hca -}}
{{- $_ := set $found "NCCL_IB_HCA" .hca -}}
{{- $_ := set $found "MOE_SERVING_RDMA_HCA" (printf "auto:%s" .hca) -}}
{{- else -}}
{{- $_ := set $found "MOE_SERVING_RDMA_HCA" "auto" -}}
{{- end -}}
{{- if has $.root.Values.engine.allToAll (list "deepep_high_throughput" "deepep_low_latency") -}}
{{- $_ := set $found "NVSHMEM_IB_ENABLE_IBGDA" "1" -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $found -}}
{{- if not (hasKey $own $name) }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" if a pool's pods run as root to lock memory, otherwise empty: (dict "pool" POOL). */}}
{{- define "moe-serving.memlockAsRoot" -}}
{{- if eq (default "runtime" (default (dict) .pool.rdma).memlock) "root" -}}true{{- end -}}
{{- end -}}

{{/* Security context of a pool's pods: (dict "root" $ "pool" POOL). */}}
{{- define "moe-serving.poolPodSecurity" -}}
{{- $context := include "moe-serving.podSecurity" .root | fromYaml -}}
{{- if include "moe-serving.memlockAsRoot" . -}}
{{- $_ := set $context "runAsNonRoot" false -}}
{{- $_ := set $context "runAsUser" 0 -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Security context of a pool's containers: (dict "root" $ "pool" POOL). Capabilities take
effect only for user 0: other users have no ambient capabilities and cannot gain any under
no-new-privileges. */}}
{{- define "moe-serving.poolContainerSecurity" -}}
{{- $root := include "moe-serving.memlockAsRoot" . -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ .root.Values.security.readOnlyRanks }}
runAsNonRoot: {{ not $root }}
capabilities: {drop: [ALL]{{ if $root }}, add: [IPC_LOCK]{{ end }}}
{{- end -}}

{{/* Environment of a pool's rank containers and of the fabric check: (dict "root" $ "pool" POOL).
*/}}
{{- define "moe-serving.poolEnvironment" -}}
{{- $own := default (dict) .pool.env -}}
{{- range (include "moe-serving.rayEnvironment" .root | fromYamlArray) -}}
{{- if not (hasKey $own .name) }}
- {name: {{ .name | quote }}, value: {{ .value | quote }}}
{{- end -}}
{{- end -}}
{{- include "moe-serving.rdmaEnvironment" . }}
{{- range $name, $value := $own }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
