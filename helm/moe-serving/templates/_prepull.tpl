{{/* DaemonSets that keep the engine image on the nodes of a unit. */}}
{{- define "moe-serving.prepullObjects" -}}
{{- if .Values.imagePrePull.enabled }}
{{- $images := prepend (default list .Values.imagePrePull.extraImages) (include "moe-serving.image" (dict "root" $ "image" .Values.image.engine)) | uniq }}
{{- range .Values.pools }}
{{- $who := dict "root" $ "component" "prepull" }}
---
# Keeps the engine image on each node of the pool: pulls it when a node joins, and keeps it in use
# so that the kubelet does not remove it.
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ include "moe-serving.poolObject" (dict "root" $ "part" "prepull" "name" .name) | quote }}
  {{- include "moe-serving.metadata" (merge (dict "labels" (dict "moe-serving/pool" .name)) $who) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "moe-serving.selector" $who | nindent 6 }}
      moe-serving/pool: {{ .name | quote }}
  updateStrategy:
    rollingUpdate: {maxUnavailable: 100%}
  template:
    metadata:
      {{- include "moe-serving.podMetadata" (merge (dict "labels" (dict "moe-serving/pool" .name)) $who) | nindent 6 }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 10
      {{- include "moe-serving.pullSecrets" $ | nindent 6 }}
      securityContext:
        {{- include "moe-serving.podSecurity" $ | nindent 8 }}
      {{- include "moe-serving.dns" (dict "root" $ "hostNetwork" false) | nindent 6 }}
      {{- include "moe-serving.everyPoolNode" (dict "root" $ "pool" .) | nindent 6 }}
      containers:
        {{- range $index, $image := $images }}
        {{- include "moe-serving.idle" (dict "root" $ "name" (printf "image-%d" $index) "image" $image "pullPolicy" $.Values.image.engine.pullPolicy) | nindent 8 }}
        {{- end }}
{{- end }}
{{- end }}
{{- end -}}
