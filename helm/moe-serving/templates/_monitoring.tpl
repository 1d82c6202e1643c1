{{/* Annotations for service discovery by a Prometheus without the operator, as YAML or empty:
(dict "root" $ "port" P "scheme" S "guarded" BOOL). Empty with a ServiceMonitor, which would
duplicate every series, and where /metrics requires an API key, which annotations cannot carry. */}}
{{- define "moe-serving.scrape" -}}
{{- $v := .root.Values -}}
{{- $open := or (not .guarded) $v.security.openMetrics $v.security.insecure -}}
{{- if and $v.monitoring.scrapeAnnotations (not $v.monitoring.serviceMonitor.enabled) $open -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ int64 .port | quote }}
prometheus.io/path: /metrics
prometheus.io/scheme: {{ .scheme | quote }}
{{- end -}}
{{- end -}}
