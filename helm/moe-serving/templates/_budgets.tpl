{{/* PodDisruptionBudgets of a unit's ranks and of its Ray head. */}}
{{- define "moe-serving.ranksBudgets" -}}
{{- $scaled := "" }}
{{- if .Values.autoscaler.enabled }}
{{- $scaled = include "moe-serving.scaledBudget" . }}
{{- end }}
{{- range .Values.pools }}
{{- $pool := include "moe-serving.pool" (dict "root" $ "pool" .) | fromJson }}
{{- $name := printf "%s-%s" (include "moe-serving.fullname" $) $pool.name }}
{{- $who := dict "root" $ "component" "ranks" }}
---
# An integer, because maxUnavailable needs a scale subresource, which RayClusters lack. Evicting a
# pod ends its whole group, so with a single group no pod may be evicted before the group is
# drained.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name | quote }}
  {{- include "moe-serving.metadata" $who | nindent 2 }}
spec:
  {{- if eq $name $scaled }}
  # The autoscaler sets minAvailable to follow the number of groups. Until then no pod may be
  # evicted.
  {{- else }}
  minAvailable: {{ int64 $pool.minAvailable }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "moe-serving.selector" $who | nindent 6 }}
      moe-serving/pool: {{ $pool.name | quote }}
{{- end }}
{{- if .Values.ray.head.pdb.enabled }}
{{- $who := dict "root" $ "component" "ray-head" }}
---
# All ranks end with the head unless Ray's control data is stored in Redis.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: "{{ include "moe-serving.serviceName" . }}-ray-head"
  {{- include "moe-serving.metadata" $who | nindent 2 }}
spec:
  minAvailable: {{ include "moe-serving.gcsFaultTolerance" . | empty | ternary 1 0 }}
  selector:
    matchLabels:
      {{- include "moe-serving.selector" $who | nindent 6 }}
      {{- with .Values.unit }}
      moe-serving/pool: {{ .slug | quote }}
      {{- end }}
{{- end }}
{{- end -}}
