{{/* Names and labels. */}}

{{- define "moe-serving.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "moe-serving.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "moe-serving.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What finds the pods of a component: (dict "root" $ "component" "router"). app.kubernetes.io/name
is not among it: KubeRay gives Ray pods its own. */}}
{{- define "moe-serving.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of objects. */}}
{{- define "moe-serving.labels" -}}
app.kubernetes.io/name: {{ include "moe-serving.name" .root }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "moe-serving.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: no versions, so that a new chart alone restarts nothing. */}}
{{- define "moe-serving.podLabels" -}}
{{ include "moe-serving.selector" . }}
app.kubernetes.io/part-of: moe-serving
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image: (dict "root" $ "image" .Values.image.router). */}}
{{- define "moe-serving.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{- define "moe-serving.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The name under which ranks find all routers. */}}
{{- define "moe-serving.joinHost" -}}
{{ include "moe-serving.fullname" . }}-join.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* The name under which whoever operates the fleet finds all routers. */}}
{{- define "moe-serving.routersHost" -}}
{{ include "moe-serving.fullname" . }}-routers.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "moe-serving.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.security.runAsUser }}
runAsGroup: {{ .Values.security.runAsUser }}
fsGroup: {{ .Values.security.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "moe-serving.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The model's volume and where it is mounted, for routers and ranks alike. */}}
{{- define "moe-serving.modelVolume" -}}
{{- $volume := .Values.model.volume }}
{{- if eq $volume.type "claim" }}
- name: model
  persistentVolumeClaim: {claimName: {{ $volume.claimName }}, readOnly: true}
{{- else if eq $volume.type "hostPath" }}
- name: model
  hostPath: {path: {{ $volume.hostPath }}, type: Directory}
{{- end }}
{{- end -}}

{{- define "moe-serving.modelMount" -}}
{{- $volume := .Values.model.volume }}
{{- if ne $volume.type "bundled" }}
- name: model
  mountPath: {{ $volume.mountPath }}
  {{- with $volume.subPath }}
  subPath: {{ . }}
  {{- end }}
  readOnly: true
{{- end }}
{{- end -}}

{{/* Waits for the Job that fetches the weights: (dict "root" $ "image" .Values.image.router). */}}
{{- define "moe-serving.waitForWeights" -}}
{{- $d := .root.Values.model.download }}
{{- if $d.enabled }}
initContainers:
  - name: weights
    image: {{ include "moe-serving.image" . }}
    imagePullPolicy: {{ .image.pullPolicy }}
    command: [moe-serving]
    args: [weights, wait, {{ $d.repository | quote }}, {{ .root.Values.model.path | quote }}, --revision, {{ $d.revision | quote }}]
    securityContext:
      {{- include "moe-serving.containerSecurity" .root | nindent 6 }}
    env:
      - {name: HOME, value: /tmp}
    resources:
      requests: {cpu: 10m, memory: 128Mi}
      limits: {memory: 256Mi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- include "moe-serving.modelMount" .root | nindent 6 }}
{{- end }}
{{- end -}}
