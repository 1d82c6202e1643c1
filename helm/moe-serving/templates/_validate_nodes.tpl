{{/* Checks for contradictory values about nodes, schedulers, DNS and the fabric. Each failure
names the value to change. */}}
{{- define "moe-serving.validateNodes" -}}
{{- $v := .Values -}}
{{- $names := list -}}
{{- range (include "moe-serving.pools" . | fromJsonArray) -}}
{{- if has .name $names -}}
{{- fail (printf "pools: %s is the name of a pool and of a group of pool %s, whose topology is required for each group: rename one" .name .base) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and $v.autoscaler.enabled (eq .base (default (first $v.pools).name $v.autoscaler.pool)) (ne .base .name) -}}
{{- fail (printf "autoscaler: only one worker group can be scaled, but pools.%s has one per group (topology.required): set topology.required to false, or topology.scope to pool (all groups in one %s)" .base .topology.key) -}}
{{- end -}}
{{- if and $v.fabricCheck.enabled (eq $v.fabricCheck.backend "nccl") (ne .accelerator "gpu") -}}
{{- fail (printf "fabricCheck.backend: nccl requires GPUs, but pool %s has none: use auto or gloo" .base) -}}
{{- end -}}
{{- end -}}
{{- if and $v.fabricCheck.enabled (ge (int $v.fabricCheck.timeout) (int $v.fabricCheck.deadlineSeconds)) -}}
{{- fail (printf "fabricCheck.timeout %d must be less than deadlineSeconds %d: otherwise the Job ends before the check can report the reason" (int $v.fabricCheck.timeout) (int $v.fabricCheck.deadlineSeconds)) -}}
{{- end -}}
{{- if and (eq $v.dnsPolicy "None") (not $v.dnsConfig.nameservers) -}}
{{- fail "dnsPolicy None requires dnsConfig.nameservers" -}}
{{- end -}}

{{- $sets := dict
  "scheduling.labels" (list $v.scheduling.labels (list "app.kubernetes.io/" "helm.sh/" "moe-serving/"))
  "scheduling.annotations" (list $v.scheduling.annotations (list "helm.sh/" "meta.helm.sh/"))
  "scheduling.podLabels" (list $v.scheduling.podLabels (list "app.kubernetes.io/" "moe-serving/" "ray.io/"))
  "scheduling.podAnnotations" (list $v.scheduling.podAnnotations (list "checksum/" "k8s.v1.cni.cncf.io/" "ray.io/"))
  "fabricCheck.labels" (list $v.fabricCheck.labels (list "app.kubernetes.io/" "helm.sh/" "moe-serving/"))
  "fabricCheck.podLabels" (list $v.fabricCheck.podLabels (list "app.kubernetes.io/" "moe-serving/" "batch.kubernetes.io/"))
  "fabricCheck.podAnnotations" (list $v.fabricCheck.podAnnotations (list "k8s.v1.cni.cncf.io/" "batch.kubernetes.io/")) -}}
{{- range $path, $set := $sets -}}
{{- range $key, $value := first $set -}}
{{- range $prefix := last $set -}}
{{- if hasPrefix $prefix $key -}}
{{- fail (printf "%s: %s is set by the chart, KubeRay or Kubernetes: remove it (networks of a pool are pools[].rdma.networks)" $path $key) -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey (default dict $v.commonLabels) $key) (contains "abels" $path) -}}
{{- fail (printf "%s: %s is already in commonLabels: remove one of them" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
