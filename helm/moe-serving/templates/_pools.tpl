{{/* A pool with all derived values, as JSON: (dict "root" $ "pool" POOL). Fails for layouts that
cannot be placed and names the value to change. */}}
{{- define "moe-serving.pool" -}}
{{- $pool := .pool -}}
{{- $model := .root.Values.model -}}
{{- $where := printf "pools.%s" $pool.name -}}
{{- $split := mustMergeOverwrite (deepCopy .root.Values.parallelism) (deepCopy (default (dict) $pool.parallelism)) -}}
{{- $data := int $split.data -}}
{{- $tensor := int $split.tensor -}}
{{- $workers := mul $data $tensor -}}
{{- $gpu := eq $pool.accelerator "gpu" -}}
{{- $perNode := int (default 0 $pool.gpusPerNode) -}}

{{- if and $gpu (not $pool.gpusPerNode) -}}
{{- fail (printf "%s: set gpusPerNode, the number of GPUs per node" $where) -}}
{{- end -}}
{{- if and (not $gpu) $pool.gpusPerNode -}}
{{- fail (printf "%s: gpusPerNode requires accelerator: gpu" $where) -}}
{{- end -}}
{{- if and $split.experts (ne (int $split.experts) (int $workers)) -}}
{{- fail (printf "%s: parallelism.experts is %d, but experts are split over data x tensor = %d workers: set it to %d or omit it" $where (int $split.experts) $workers $workers) -}}
{{- end -}}
{{- if gt (int $workers) (int $model.routedExperts) -}}
{{- fail (printf "%s: data x tensor = %d workers for %d routed experts leaves some workers without experts: lower parallelism.data or parallelism.tensor" $where $workers (int $model.routedExperts)) -}}
{{- end -}}
{{- if mod (int $model.attentionHeads) $tensor -}}
{{- fail (printf "%s: parallelism.tensor %d does not divide the model's %d attention heads: use a divisor" $where $tensor (int $model.attentionHeads)) -}}
{{- end -}}
{{- if and (eq $model.attention "mla") (gt $tensor 1) (not $split.replicateKv) -}}
{{- fail (printf "%s: with MLA the %d workers of a rank would each keep a copy of the same KV cache: set parallelism.tensor to 1 and parallelism.data to %d, or parallelism.replicateKv to true" $where $tensor $workers) -}}
{{- end -}}
{{- if and (eq $model.attention "gqa") (gt $tensor (int $model.keyValueHeads)) (not $split.replicateKv) -}}
{{- fail (printf "%s: parallelism.tensor %d exceeds the model's %d key-value heads, which would be replicated: lower it, or set parallelism.replicateKv to true" $where $tensor (int $model.keyValueHeads)) -}}
{{- end -}}

{{- $perPod := 1 -}}
{{- if $split.ranksPerPod -}}
{{- $perPod = int $split.ranksPerPod -}}
{{- else if $gpu -}}
{{- if gt $tensor $perNode -}}
{{- fail (printf "%s: a rank with parallelism.tensor %d needs that many GPUs on one node, but gpusPerNode is %d: lower parallelism.tensor and raise parallelism.data" $where $tensor $perNode) -}}
{{- end -}}
{{- $perPod = min $data (div $perNode $tensor) -}}
{{- end -}}
{{- $perPod = int $perPod -}}
{{- $podGpus := ternary (mul $perPod $tensor) 0 $gpu -}}
{{- if and $gpu (gt (int $podGpus) $perNode) -}}
{{- fail (printf "%s: %d ranks per pod with %d GPUs each need %d GPUs, but a node has %d: lower parallelism.ranksPerPod to %d" $where $perPod $tensor $podGpus $perNode (div $perNode $tensor)) -}}
{{- end -}}
{{- if mod $data $perPod -}}
{{- fail (printf "%s: a group's %d x %d workers cannot be divided into pods of %d ranks each: set parallelism.data to a multiple of %d, or parallelism.ranksPerPod to a divisor of %d" $where $data $tensor $perPod $perPod $data) -}}
{{- end -}}
{{- if and $gpu (mod $perNode (int $podGpus)) -}}
{{- fail (printf "%s: pods of %d GPUs leave %d of a node's %d GPUs unused: choose parallelism so that the GPUs of a pod divide those of a node" $where $podGpus (mod $perNode (int $podGpus)) $perNode) -}}
{{- end -}}

{{- $groups := 1 -}}
{{- if hasKey $pool "groups" -}}{{- $groups = int $pool.groups -}}{{- end -}}
{{- $most := int (default $groups $pool.maxGroups) -}}
{{- if lt $most $groups -}}
{{- fail (printf "%s: maxGroups %d is less than groups %d" $where $most $groups) -}}
{{- end -}}
{{- $podsPerGroup := div $data $perPod -}}
{{- $placement := default "pack" $pool.placement -}}
{{- if and (eq $placement "strict_spread") (gt $perPod 1) -}}
{{- fail (printf "%s: placement strict_spread allows one rank per node, but a pod has %d: set parallelism.ranksPerPod to 1 or placement to pack" $where $perPod) -}}
{{- end -}}
{{- if and $pool.rdma (not $gpu) -}}
{{- fail (printf "%s: rdma requires accelerator: gpu" $where) -}}
{{- end -}}
{{- if and .root.Values.engine.allToAll (not $gpu) -}}
{{- fail (printf "%s: engine.allToAll %s requires GPUs: set it to \"\"" $where .root.Values.engine.allToAll) -}}
{{- end -}}
{{- $deepep := has .root.Values.engine.allToAll (list "deepep_high_throughput" "deepep_low_latency" "nixl_ep" "mori_high_throughput" "mori_low_latency") -}}
{{- if and $deepep (gt (int $podsPerGroup) 1) (not $pool.rdma) -}}
{{- fail (printf "%s: engine.allToAll %s requires RDMA if a group spans %d pods: set rdma.resource, or engine.allToAll to allgather_reducescatter" $where .root.Values.engine.allToAll $podsPerGroup) -}}
{{- end -}}
{{- if and $pool.spot (eq .root.Values.cloud "none") (not $pool.nodeSelector) -}}
{{- fail (printf "%s: spot requires cloud (gke, eks or aks) or a nodeSelector that selects the spot nodes" $where) -}}
{{- end -}}
{{- $pods := mul $groups $podsPerGroup -}}
{{- $maxPods := mul $most $podsPerGroup -}}
{{- $given := $groups -}}
{{- $minimum := 0 -}}
{{- if hasKey $pool "minAvailablePods" -}}
{{- $minimum = int $pool.minAvailablePods -}}
{{- if gt $minimum (int $pods) -}}
{{- fail (printf "%s: minAvailablePods %d exceeds the pool's %d pods" $where $minimum $pods) -}}
{{- end -}}
{{- else -}}
{{- $minimum = ternary (sub $pods 1) $pods (gt $groups 1) -}}
{{- end -}}
{{- with include "moe-serving.scaledPods" . | fromJson -}}
{{- $pods = int .replicas -}}
{{- $groups = div $pods $podsPerGroup -}}
{{- $maxPods = max $maxPods (int .maxReplicas) $pods -}}
{{- end -}}
{{- dict "name" $pool.name "gpu" $gpu "data" $data "tensor" $tensor "workers" $workers
  "ranksPerPod" $perPod "gpusPerPod" $podGpus "podsPerGroup" $podsPerGroup "groups" $groups
  "givenGroups" $given "maxGroups" $most "maxPods" $maxPods "pods" $pods "ranks" (mul $groups $data) "gpus" (mul $pods $podGpus)
  "ownMinimum" (hasKey $pool "minAvailablePods") "placement" $placement "cpusPerRank" (default 1 $pool.cpusPerRank) "minAvailable" $minimum | toJson -}}
{{- end -}}

{{/* Number of pods that the autoscaler has set in the running release, as JSON with replicas and
maxReplicas: (dict "root" $ "pool" POOL). {} for other pools, without the autoscaler, at the first
install, and when Helm renders without a cluster (helm template, Argo CD); the pool's groups apply
then. If an upgrade reset the number to the pool's groups, KubeRay would delete pods with running
ranks as soon as it applies the number, which it does when a pool is added and after an upgrade of
the operator. */}}
{{- define "moe-serving.scaledPods" -}}
{{- $v := .root.Values -}}
{{- $found := dict -}}
{{- if and $v.autoscaler.enabled (not $v.autoscaler.cluster) (eq .pool.name (default (first $v.pools).name $v.autoscaler.pool)) -}}
{{- $service := lookup "ray.io/v1" "RayService" .root.Release.Namespace (include "moe-serving.serviceName" .root) -}}
{{- $name := .pool.name -}}
{{- range dig "spec" "rayClusterConfig" "workerGroupSpecs" list $service -}}
{{- if eq .groupName $name -}}{{- $found = pick . "replicas" "maxReplicas" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}
