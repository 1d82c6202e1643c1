{{/* Contents of the settings files, computed from the values. */}}

{{/* Settings of a pool's ranks, as JSON: (dict "root" $ "pool" POOL). Contains only settings that
ranks use, because every change restarts them. group.count is omitted: num_replicas replaces it. */}}
{{- define "moe-serving.rankSettings" -}}
{{- $v := .root.Values -}}
{{- $own := default dict $v.settings -}}
{{- $s := include "moe-serving.security" .root | fromJson -}}
{{- $pool := include "moe-serving.pool" . | fromJson -}}
{{- $model := dict "name" $v.model.name -}}
{{- with $v.model.path }}{{- $_ := set $model "path" . }}{{- end -}}
{{- $model = merge $model (include "moe-serving.adapterSettings" .root | fromJson) -}}
{{- $args := deepCopy (default dict $v.engine.args) -}}
{{- with $v.engine.allToAll }}{{- $_ := set $args "all2all_backend" . }}{{- end -}}
{{- with $v.model.stream.url -}}
{{- $_ := set $args "load_format" "runai_streamer" -}}
{{- $_ := set $args "model_weights" . -}}
{{- $_ := set $args "model_loader_extra_config" (dict "concurrency" (int $v.model.stream.concurrency)) -}}
{{- end -}}
{{- $engine := dict "dtype" $v.model.dtype "max_num_seqs" (int $v.engine.maxNumSeqs)
  "speculative" $v.engine.speculative "args" $args -}}
{{- if eq $v.engine.speculative "mtp" }}{{- $_ := set $engine "speculative_tokens" (int $v.engine.speculativeTokens) }}{{- end -}}
{{- with $v.model.maxModelLen }}{{- $_ := set $engine "max_model_len" (int .) }}{{- end -}}
{{- if not $pool.gpu -}}
{{- $_ := set $engine "kv_cache_gib" $v.engine.kvCacheGib -}}
{{- $_ := set $engine "threads_per_rank" (int $v.engine.threadsPerRank) -}}
{{- end -}}
{{- $group := dict "data_parallel" (int $pool.data) "tensor_parallel" (int $pool.tensor)
  "placement" $pool.placement "cpus_per_rank" $pool.cpusPerRank
  "node_resource" (printf "pool-%s" $pool.name) "start_timeout" $v.engine.startTimeout
  "placement_timeout" $v.engine.placementTimeout -}}
{{- $link := dict "routers" (list (printf "dns:///%s:%d" (include "moe-serving.joinHost" .root) (int $v.router.ports.join))) -}}
{{- if $s.joinToken.existingSecret }}{{- $_ := set $link "token_file" "/etc/moe-serving/join/token" }}{{- end -}}
{{- if $s.joinTls.enabled -}}
{{- $_ := set $link "tls_ca_file" "/etc/moe-serving/join-tls/ca.crt" -}}
{{- if $s.joinTls.rankSecret -}}
{{- $_ := set $link "tls_cert_file" "/etc/moe-serving/join-tls/tls.crt" -}}
{{- $_ := set $link "tls_key_file" "/etc/moe-serving/join-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $result := dict "platform" (ternary "gpu" "cpu" $pool.gpu) "model" $model "engine" $engine
  "group" $group "link" $link
  "router" (dict "reasoning_parser" $v.model.reasoningParser)
  "ray" (dict "app_name" (include "moe-serving.appName" (dict "root" .root "name" $pool.name)))
  "telemetry" (dict "log_format" "json") -}}
{{- with $v.unit }}{{- $_ := set $group "pool" .pool }}{{- end -}}
{{- range list "engine" "group" "link" "ray" "telemetry" -}}
{{- if hasKey $own . -}}
{{- $_ := mustMergeOverwrite $result (pick (deepCopy $own) .) -}}
{{- end -}}
{{- end -}}
{{- $result | toJson -}}
{{- end -}}

{{/* Settings file of the routers, as YAML. It does not contain the number of groups: routers
accept every group that joins and need no restart when the number changes. */}}
{{- define "moe-serving.settings" -}}
{{- $v := .Values -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" $ "out" $out) -}}
{{- $unit := first $out.units -}}
{{- $first := first (include "moe-serving.pools" $unit | fromJsonArray) -}}
{{- $result := include "moe-serving.rankSettings" (dict "root" $unit "pool" $first) | fromJson -}}
{{- $_ := set $result "router" (dict "host" "0.0.0.0" "join_host" "0.0.0.0"
  "rest_port" (int $v.router.ports.rest) "grpc_port" (int $v.router.ports.grpc)
  "join_port" (int $v.router.ports.join) "request_timeout" $v.router.requestTimeout
  "drain_timeout" $v.router.drainTimeout "reasoning_parser" $v.model.reasoningParser
  "tool_parser" $v.model.toolParser) -}}
{{- if $v.models -}}
{{- $result = omit $result "model" "group" "engine" -}}
{{- $_ := set $result "models" (include "moe-serving.modelsSettings" (dict "root" $ "for" "router") | fromJsonArray) -}}
{{- $_ := set $result.ray "app_name" (include "moe-serving.fullname" $) -}}
{{- end -}}
{{- $s := include "moe-serving.security" . | fromJson -}}
{{- $security := dict -}}
{{- if $s.insecure }}{{- $_ := set $security "insecure" true }}{{- end -}}
{{- if $s.openMetrics }}{{- $_ := set $security "open_metrics" true }}{{- end -}}
{{- if $s.apiKeys.existingSecret }}{{- $_ := set $security "keys_file" "/etc/moe-serving/keys/keys.yaml" }}{{- end -}}
{{- if $s.joinToken.existingSecret }}{{- $_ := set $security "join_token_file" "/etc/moe-serving/join/token" }}{{- end -}}
{{- if eq $s.tls.mode "elsewhere" -}}
{{- $_ := set $security "tls_elsewhere" true -}}
{{- else if $s.tls.existingSecret -}}
{{- $_ := set $security "tls_cert_file" "/etc/moe-serving/tls/tls.crt" -}}
{{- $_ := set $security "tls_key_file" "/etc/moe-serving/tls/tls.key" -}}
{{- end -}}
{{- if $s.joinTls.enabled -}}
{{- $_ := set $security "join_tls_cert_file" "/etc/moe-serving/join-tls/tls.crt" -}}
{{- $_ := set $security "join_tls_key_file" "/etc/moe-serving/join-tls/tls.key" -}}
{{- if $s.joinTls.rankSecret }}{{- $_ := set $security "join_tls_client_ca_file" "/etc/moe-serving/join-tls/ca.crt" }}{{- end -}}
{{- end -}}
{{- $_ := set $result "security" $security -}}
{{- if $v.quotas.redisUrl -}}
{{- $admission := dict "redis_url" $v.quotas.redisUrl -}}
{{- if $v.quotas.existingSecret }}{{- $_ := set $admission "redis_password_file" "/etc/moe-serving/quotas/password" }}{{- end -}}
{{- $_ := set $result "admission" $admission -}}
{{- end -}}
{{- if $v.ledger.databaseUrl -}}
{{- $ledger := dict "directory" "/var/lib/moe-serving/ledger" "database_url" $v.ledger.databaseUrl -}}
{{- if $v.ledger.existingSecret }}{{- $_ := set $ledger "database_password_file" "/etc/moe-serving/ledger/password" }}{{- end -}}
{{- if $v.ledger.tariff }}{{- $_ := set $ledger "tariff_file" "/etc/moe-serving/settings/tariff.yaml" }}{{- end -}}
{{- if not (kindIs "invalid" $v.ledger.gpuHourPrice) }}{{- $_ := set $ledger "gpu_hour_price" $v.ledger.gpuHourPrice }}{{- end -}}
{{- $_ := set $result "ledger" $ledger -}}
{{- end -}}
{{- $_ := set $result "console" (dict "enabled" $v.console.enabled) -}}
{{- mustMergeOverwrite $result (deepCopy (default dict $v.settings)) | toYaml -}}
{{- end -}}

{{/* Effective security values, as JSON: with insecure, all secrets are omitted. */}}
{{- define "moe-serving.security" -}}
{{- $s := deepCopy .Values.security -}}
{{- if $s.insecure -}}
{{- $_ := set $s.apiKeys "existingSecret" "" -}}
{{- $_ := set $s.joinToken "existingSecret" "" -}}
{{- $_ := set $s.tls "existingSecret" "" -}}
{{- $_ := set $s.joinTls "enabled" false -}}
{{- $_ := set $s.joinTls "rankSecret" "" -}}
{{- end -}}
{{/* Ray's token, and the API key that the autoscaler uses to drain groups. */}}
{{- $auth := .Values.ray.auth -}}
{{- $_ := set $s "rayAuth" (and $auth.enabled (not $s.insecure)) -}}
{{- $_ := set $s "rayToken" (ternary $auth.existingSecret "" $s.rayAuth) -}}
{{- $_ := set $s "autoscalerKey" (ternary "" .Values.autoscaler.existingSecret $s.insecure) -}}
{{- $_ := set $s "scheme" (ternary "https" "http" (and (eq $s.tls.mode "secret") (ne $s.tls.existingSecret ""))) -}}
{{- $s | toJson -}}
{{- end -}}

{{/* The pool that the autoscaler scales, with all derived values, as JSON. */}}
{{- define "moe-serving.scaledPool" -}}
{{- $name := default (first .Values.pools).name .Values.autoscaler.pool -}}
{{- range .Values.pools -}}
{{- if eq .name $name -}}
{{- include "moe-serving.pool" (dict "root" $ "pool" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Maximum number of groups of the scaled pool. */}}
{{- define "moe-serving.mostGroups" -}}
{{- $own := (include "moe-serving.scaledPool" . | fromJson).maxGroups -}}
{{- default $own .Values.autoscaler.maxGroups | int -}}
{{- end -}}

{{/* Name of the Lease for the autoscaler's leader election. */}}
{{- define "moe-serving.lease" -}}
{{- printf "%s-autoscaler-leader" (include "moe-serving.fullname" .) -}}
{{- end -}}

{{/* Name of the PodDisruptionBudget that the autoscaler updates: that of the scaled pool, or
empty if the pool sets minAvailablePods. */}}
{{- define "moe-serving.scaledBudget" -}}
{{- $pool := include "moe-serving.scaledPool" . | fromJson -}}
{{- if not $pool.ownMinimum -}}
{{- printf "%s-%s" (include "moe-serving.fullname" .) $pool.name -}}
{{- end -}}
{{- end -}}

{{/* A duration such as 15s, 1m or 500ms in seconds. */}}
{{- define "moe-serving.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | float64 -}}
{{- mulf $number (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) (regexFind "[a-z]+$" .)) -}}
{{- end -}}

{{/* Settings file of the autoscaler, as YAML. */}}
{{- define "moe-serving.autoscalerSettings" -}}
{{- $full := include "moe-serving.fullname" . -}}
{{- $a := .Values.autoscaler -}}
{{- $s := include "moe-serving.security" . | fromJson -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" $ "out" $out) -}}
{{- $pool := include "moe-serving.scaledPool" (first $out.units) | fromJson -}}
{{- $scraped := include "moe-serving.seconds" .Values.monitoring.interval | float64 -}}
{{- $own := dict "min_groups" (int $a.minGroups) "max_groups" (int (include "moe-serving.mostGroups" (first $out.units)))
  "prometheus_url" $a.prometheusUrl
  "selector" (printf "namespace=%q,fleet=%q" .Release.Namespace $full)
  "scrape_interval" $scraped "window" (maxf 60 (mulf 4 $scraped)) "max_age" (maxf 30 (mulf 2 $scraped))
  "gpus_per_group" (mul $pool.podsPerGroup $pool.gpusPerPod)
  "routers" (list (printf "dns:///%s:%d" (include "moe-serving.routersHost" .) (int .Values.router.ports.rest)))
  "drain_addresses" (list (printf "dns:///%s:%d" (include "moe-serving.routersHost" .) (int .Values.router.ports.grpc)))
  "dashboard_url" (printf "http://%s-head-svc.%s.svc:8265" $full .Release.Namespace)
  "metrics_host" "0.0.0.0" "metrics_port" 9464
  "kubernetes" (dict "enabled" true "namespace" .Release.Namespace "service" $full
    "cluster" $a.cluster "worker_group" $pool.name "workers_per_group" (int $pool.podsPerGroup)
    "lease" (include "moe-serving.lease" .) "disruption_budget" (include "moe-serving.scaledBudget" (first $out.units))) -}}
{{- if $s.autoscalerKey }}{{- $_ := set $own "api_key_file" "/etc/moe-serving/autoscaler/key" }}{{- end -}}
{{- if eq $s.scheme "https" }}{{- $_ := set $own "ca_file" "/etc/moe-serving/tls/ca.crt" }}{{- end -}}
{{- if $s.rayToken }}{{- $_ := set $own "dashboard_token_file" "/etc/moe-serving/ray/auth_token" }}{{- end -}}
{{- if .Values.models -}}
{{- $own = omit $own "min_groups" "max_groups" "gpus_per_group" "dashboard_url" -}}
{{- $_ := set $own "kubernetes" (pick $own.kubernetes "enabled" "namespace" "lease") -}}
{{- with $a.maxGpus }}{{- $_ := set $own "max_gpus" . }}{{- end -}}
{{- with $a.maxNodes }}{{- $_ := set $own "max_nodes" (int .) }}{{- end -}}
{{- dict "platform" (ternary "gpu" "cpu" $pool.gpu) "ray" (dict "app_name" $full)
  "models" (include "moe-serving.modelsSettings" (dict "root" $ "for" "autoscaler") | fromJsonArray)
  "telemetry" (dict "log_format" "json")
  "autoscaler" (mustMergeOverwrite $own (deepCopy (default dict $a.settings))) | toYaml -}}
{{- else -}}
{{- $groups := dict "data_parallel" (int $pool.data) "tensor_parallel" (int $pool.tensor) -}}
{{- dict "platform" (ternary "gpu" "cpu" $pool.gpu) "group" $groups
  "ray" (dict "app_name" (printf "%s-%s" $full $pool.name))
  "telemetry" (dict "log_format" "json")
  "autoscaler" (mustMergeOverwrite $own (deepCopy (default dict $a.settings))) | toYaml -}}
{{- end -}}
{{- end -}}
