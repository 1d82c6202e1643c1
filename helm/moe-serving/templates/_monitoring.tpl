{{/* Annotations by which a Prometheus without the operator finds pods, as YAML or nothing:
(dict "root" $ "port" P "scheme" S "guarded" BOOL). Not with a ServiceMonitor, which would make every
series twice, and not where /metrics takes an API key, which annotations cannot give. */}}
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
