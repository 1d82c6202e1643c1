{{/* Everything that an enabled autoscaler lacks, in one failure with a remedy for each. */}}
{{- define "moe-serving.validateAutoscaler" -}}
{{- $v := .Values -}}
{{- $a := $v.autoscaler -}}
{{- if $a.enabled -}}
{{- $names := list -}}
{{- range $v.pools -}}{{- $names = append $names .name -}}{{- end -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" $ "out" $out) -}}
{{- if and $a.pool (not (has $a.pool $names)) -}}
{{- fail (printf "autoscaler.pool: pool %s does not exist" $a.pool) -}}
{{- end -}}
{{- $missing := list -}}
{{- $insecure := $v.security.insecure -}}
{{- if not $a.prometheusUrl -}}
{{- $missing = append $missing "autoscaler.prometheusUrl: set the URL of the Prometheus that scrapes the routers, for example --set autoscaler.prometheusUrl=http://prometheus-operated.monitoring.svc:9090" -}}
{{- end -}}
{{- range $unit := $out.units -}}
{{- $scaled := include "moe-serving.scaledPool" $unit | fromJson -}}
{{- $least := int $a.minGroups -}}
{{- with $unit.Values.unit -}}{{- $least = int .minGroups -}}{{- end -}}
{{- $most := include "moe-serving.mostGroups" $unit | int -}}
{{- if gt $least $most -}}
{{- $missing = append $missing (printf "autoscaler.minGroups %d is greater than maxGroups %d of pool %s: raise autoscaler.maxGroups" $least $most $scaled.name) -}}
{{- else if eq $least $most -}}
{{- $missing = append $missing (printf "autoscaler.maxGroups: minGroups and maxGroups of pool %s are both %d, so there is nothing to scale: for example --set autoscaler.maxGroups=%d" $scaled.name $most (add $most 1)) -}}
{{- end -}}
{{- if and (eq $least 0) (not $v.router.readyWhenParked) -}}
{{- $missing = append $missing "autoscaler.minGroups 0 requires router.readyWhenParked: otherwise no router is ready to accept the request that starts a group" -}}
{{- end -}}
{{- end -}}
{{- if not $insecure -}}
{{- if not $a.existingSecret -}}
{{- $missing = append $missing (printf "autoscaler.existingSecret: set the Secret with an API key of role admin: moe-serving keys new --tenant autoscaler --role admin --file keys.yaml, then kubectl -n %s create secret generic moe-serving-autoscaler --from-literal=%s=KEY" .Release.Namespace $a.secretKey) -}}
{{- end -}}
{{- if and $v.ray.auth.enabled (not $v.ray.auth.existingSecret) -}}
{{- $missing = append $missing (printf "ray.auth.existingSecret: the autoscaler needs Ray's token, but the Secret that KubeRay creates has a different name for each cluster: run kubectl -n %s create secret generic moe-serving-ray --from-literal=auth_token=\"$(openssl rand -hex 32)\", then set its name (in a running release, this starts a second Ray cluster)" .Release.Namespace) -}}
{{- end -}}
{{- $annotated := include "moe-serving.scrape" (dict "root" $ "port" 1 "scheme" "" "guarded" true) -}}
{{- if not (or $v.monitoring.serviceMonitor.enabled $annotated (default dict $a.settings).selector) -}}
{{- $missing = append $missing "monitoring: scraping of the routers is not configured, so the autoscaler would have no data. With the Prometheus operator: monitoring.serviceMonitor.enabled and .existingSecret (an API key of role metrics); with annotations: monitoring.scrapeAnnotations and security.openMetrics; with a Prometheus that you configure yourself: autoscaler.settings.selector, label matchers that select this release's routers" -}}
{{- end -}}
{{- end -}}
{{- if $missing -}}
{{- fail (printf "autoscaler.enabled has missing requirements:\n- %s" (join "\n- " $missing)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
