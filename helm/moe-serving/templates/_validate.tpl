{{/* Checks that the schema cannot express. Each failure names the value to change. */}}
{{- define "moe-serving.validate" -}}
{{- $v := .Values -}}
{{- $names := list -}}
{{- $kinds := list -}}
{{- $groups := 0 -}}
{{- include "moe-serving.validateModels" . -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" $ "out" $out) -}}
{{- range $unit := $out.units -}}
{{- range $unit.Values.pools -}}
{{- if has .name $names -}}
{{- fail (printf "pools: two pools are named %s: names must differ" .name) -}}
{{- end -}}
{{- if has .name (list "router" "ray-head" "autoscaler") -}}
{{- fail (printf "pools.%s: the name is already used by another part of the release: choose another name" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $kinds = append $kinds .accelerator | uniq -}}
{{- $pool := include "moe-serving.pool" (dict "root" $unit "pool" .) | fromJson -}}
{{- $groups = add $groups (int $pool.givenGroups) -}}
{{- end -}}
{{- include "moe-serving.validateNodes" $unit -}}
{{- end -}}
{{- if gt (len $kinds) 1 -}}
{{- fail "pools: cpu and gpu pools need different images and settings: install two releases" -}}
{{- end -}}

{{- range $path, $texts := dict "commonLabels" $v.commonLabels "commonAnnotations" $v.commonAnnotations -}}
{{- range $key, $_ := $texts -}}
{{- range list "app.kubernetes.io/" "helm.sh/" "meta.helm.sh/" "moe-serving/" "ray.io/" "checksum/" -}}
{{- if or (hasPrefix . $key) (eq $key "fleet") -}}
{{- fail (printf "%s: %s is set by the chart, Helm or KubeRay: remove it" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $out.units -}}{{- include "moe-serving.validateModel" . -}}{{- end -}}

{{/* Settings that the chart computes, with the values that they are computed from. */}}
{{- $computed := dict
  "platform" "pools[].accelerator" "model.name" "model.name" "model.path" "model.path"
  "models" "models"
  "group.count" "pools[].groups" "group.data_parallel" "parallelism.data"
  "group.tensor_parallel" "parallelism.tensor" "group.placement" "pools[].placement"
  "group.cpus_per_rank" "pools[].cpusPerRank" "group.node_resource" "pools[].name"
  "router.host" "networkPolicy" "router.join_host" "networkPolicy"
  "router.rest_port" "router.ports.rest" "router.grpc_port" "router.ports.grpc"
  "router.join_port" "router.ports.join" "router.drain_timeout" "router.drainTimeout"
  "router.reasoning_parser" "model.reasoningParser" "ray.app_name" "fullnameOverride"
  "ray.address" "fullnameOverride" "link.routers" "fullnameOverride and clusterDomain"
  "link.token_file" "security.joinToken" "security.keys_file" "security.apiKeys"
  "security.join_token_file" "security.joinToken" "security.tls_cert_file" "security.tls"
  "security.tls_key_file" "security.tls" "security.join_tls_cert_file" "security.joinTls"
  "security.join_tls_key_file" "security.joinTls" "security.insecure" "security.insecure"
  "autoscaler" "autoscaler.settings" -}}
{{- range $path, $value := $computed -}}
{{- $parts := splitList "." $path -}}
{{- $at := get (default dict $v.settings) (first $parts) -}}
{{- if and (hasKey (default dict $v.settings) (first $parts)) (or (eq (len $parts) 1) (hasKey (default (dict) $at) (last $parts))) -}}
{{- fail (printf "settings.%s is computed by the chart: set the value %s instead" $path $value) -}}
{{- end -}}
{{- end -}}

{{- $ports := list (int $v.router.ports.rest) (int $v.router.ports.grpc) (int $v.router.ports.join) -}}
{{- if ne (len (uniq $ports)) 3 -}}
{{- fail "router.ports: rest, grpc and join must differ" -}}
{{- end -}}
{{- $grace := $v.router.terminationGracePeriodSeconds -}}
{{- $needed := add (int $v.router.preStopSeconds) (int $v.router.drainTimeout) 5 -}}
{{- if and $grace (lt (int $grace) (int $needed)) -}}
{{- fail (printf "router.terminationGracePeriodSeconds %d would kill a draining router: set at least preStopSeconds + drainTimeout + 5 = %d" (int $grace) $needed) -}}
{{- end -}}
{{- if and $v.router.autoscaling.enabled (gt (int $v.router.autoscaling.minReplicas) (int $v.router.autoscaling.maxReplicas)) -}}
{{- fail "router.autoscaling: minReplicas is greater than maxReplicas" -}}
{{- end -}}
{{- $replicas := ternary (int $v.router.autoscaling.minReplicas) (int $v.router.replicas) $v.router.autoscaling.enabled -}}
{{- if and $v.router.pdb.enabled (gt $replicas 1) (ge (int $v.router.pdb.maxUnavailable) $replicas) -}}
{{- fail (printf "router.pdb.maxUnavailable %d allows all %d routers to be evicted at once: lower it" (int $v.router.pdb.maxUnavailable) $replicas) -}}
{{- end -}}
{{- if and (eq $groups 0) (not $v.router.readyWhenParked) (not $v.autoscaler.enabled) -}}
{{- fail "pools: no pool has groups: set groups, or set router.readyWhenParked to install without groups" -}}
{{- end -}}

{{- $s := $v.security -}}
{{- if not $s.insecure -}}
{{- if not $s.apiKeys.existingSecret -}}
{{- fail "security.apiKeys.existingSecret: set the Secret with the API keys, or set security.insecure" -}}
{{- end -}}
{{- if and (not $s.joinToken.existingSecret) (not $s.joinTls.rankSecret) -}}
{{- fail "security.joinToken.existingSecret: set the Secret with the join token (or security.joinTls.rankSecret), or set security.insecure" -}}
{{- end -}}
{{- if and (eq $s.tls.mode "secret") (not $s.tls.existingSecret) -}}
{{- fail "security.tls.existingSecret: set the Secret with the certificate, or set security.tls.mode to elsewhere" -}}
{{- end -}}
{{- end -}}
{{- if and $s.joinTls.enabled (not $s.joinTls.existingSecret) -}}
{{- fail "security.joinTls.existingSecret: set the Secret with the join port's certificate" -}}
{{- end -}}
{{- if and $s.joinTls.rankSecret (not $s.joinTls.enabled) -}}
{{- fail "security.joinTls.rankSecret requires security.joinTls.enabled" -}}
{{- end -}}
{{- if and (or $v.ledger.existingSecret $v.ledger.tariff) (not $v.ledger.databaseUrl) -}}
{{- fail "ledger.existingSecret and ledger.tariff require ledger.databaseUrl" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled $v.ledger.databaseUrl (not $v.networkPolicy.postgres) -}}
{{- fail "networkPolicy.postgres: list the peers that run PostgreSQL; otherwise the NetworkPolicies block it" -}}
{{- end -}}
{{- if and $v.quotas.existingSecret (not $v.quotas.redisUrl) -}}
{{- fail "quotas.existingSecret requires quotas.redisUrl" -}}
{{- end -}}
{{- $faultTolerant := include "moe-serving.gcsFaultTolerance" . -}}
{{- if and $faultTolerant (not $v.ray.gcsFaultTolerance.redisAddress) -}}
{{- fail "ray.gcsFaultTolerance: enabled requires redisAddress (host:port)" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (or $v.quotas.redisUrl $faultTolerant) (not $v.networkPolicy.redis) -}}
{{- fail "networkPolicy.redis: list the peers that run Redis; otherwise the NetworkPolicies block it" -}}
{{- end -}}
{{- if and $v.monitoring.serviceMonitor.enabled (not $v.monitoring.serviceMonitor.existingSecret) (not $s.openMetrics) (not $s.insecure) -}}
{{- fail "monitoring.serviceMonitor: /metrics requires an API key of role metrics: set existingSecret to its Secret, or set security.openMetrics" -}}
{{- end -}}
{{- if and $v.monitoring.prometheusRule.enabled (not $v.monitoring.serviceMonitor.enabled) -}}
{{- fail "monitoring.prometheusRule: its rules use the metrics that the ServiceMonitor scrapes: enable monitoring.serviceMonitor as well" -}}
{{- end -}}
{{- include "moe-serving.validateAutoscaler" . -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: set the host name" -}}
{{- end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: set the Gateway that the routes attach to" -}}
{{- end -}}
{{- end -}}
