{{/* RDMA: which devices, and who may lock memory for them. */}}

{{/* Environment of a pool's ranks for RDMA: (dict "root" $ "pool" POOL), a YAML list or nothing.

NCCL_IB_HCA takes prefixes, and exact names behind a "="; NVSHMEM_HCA_LIST compares names exactly. A
list of names is given to both, and so is a text with ports or a "=" in front, which can only mean
names. Any other text is a prefix for NCCL; what NVSHMEM gets is then found in the pod
(MOE_SERVING_RDMA_HCA), as it is where nothing is given. Variables of pools[].env win. */}}
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

{{/* Whether a pool's pods run as root to lock memory: (dict "pool" POOL), "true" or nothing. */}}
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

{{/* Security context of a pool's containers: (dict "root" $ "pool" POOL). A capability takes effect for
user 0 alone: other users have no ambient capabilities, and no-new-privileges keeps it so. */}}
{{- define "moe-serving.poolContainerSecurity" -}}
{{- $root := include "moe-serving.memlockAsRoot" . -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ .root.Values.security.readOnlyRanks }}
runAsNonRoot: {{ not $root }}
capabilities: {drop: [ALL]{{ if $root }}, add: [IPC_LOCK]{{ end }}}
{{- end -}}

{{/* Environment of the containers of a pool's ranks, and of the check that runs before them:
(dict "root" $ "pool" POOL). */}}
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
