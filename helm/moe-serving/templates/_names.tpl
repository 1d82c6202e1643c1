{{/* Names and labels. */}}

{{- define "moe-serving.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all object names, at most 40 characters. Names of Services and RayServices must
start with a letter and contain no dot (RFC 1035); release names may violate both. Longer names are
shortened and made unique by a digest. */}}
{{- define "moe-serving.fullname" -}}
{{- $whole := .Values.fullnameOverride -}}
{{- if not $whole -}}
{{- $whole = .Release.Name | replace "." "-" -}}
{{- if not (contains .Chart.Name $whole) -}}
{{- $whole = printf "%s-%s" $whole (include "moe-serving.name" .) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" $whole) -}}
{{- $whole = printf "r-%s" $whole -}}
{{- end -}}
{{- end -}}
{{- if gt (len $whole) 40 -}}
{{- $whole = printf "%s-%s" (trunc 31 $whole | trimSuffix "-") (sha256sum $whole | trunc 8) -}}
{{- end -}}
{{- $whole -}}
{{- end -}}

{{/* Selector labels of a component's pods: (dict "root" $ "component" "router"). Without
app.kubernetes.io/name, because KubeRay sets its own value on Ray pods. */}}
{{- define "moe-serving.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{/* Labels and annotations of an object: (dict "root" $ "component" C "labels" MAP "annotations"
MAP). In decreasing order of precedence: those of the chart, the maps, commonLabels and
commonAnnotations. */}}
{{- define "moe-serving.metadata" -}}
{{- $own := include "moe-serving.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/name" (include "moe-serving.name" .root) -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- include "moe-serving.marks" (merge (dict "own" $own) .) -}}
{{- end -}}

{{/* Labels and annotations of a pod. They contain no versions, so that a new chart version does not by itself restart pods. */}}
{{- define "moe-serving.podMetadata" -}}
{{- $own := include "moe-serving.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "moe-serving" -}}
{{- include "moe-serving.marks" (merge (dict "own" $own) .) -}}
{{- end -}}

{{- define "moe-serving.marks" -}}
{{- $common := .root.Values -}}
labels:
  {{- merge .own (deepCopy (default dict .labels)) (deepCopy (default dict $common.commonLabels)) | toYaml | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) (deepCopy (default dict $common.commonAnnotations)) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Image reference: (dict "root" $ "image" .Values.image.router). */}}
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
{{- range uniq . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Host name of the Service through which ranks discover all routers. */}}
{{- define "moe-serving.joinHost" -}}
{{ include "moe-serving.fullname" . }}-join.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Host name of the Service through which operators and the autoscaler discover all routers. */}}
{{- define "moe-serving.routersHost" -}}
{{ include "moe-serving.fullname" . }}-routers.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "moe-serving.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.security.runAsUser }}
runAsGroup: {{ int64 .Values.security.runAsUser }}
fsGroup: {{ int64 .Values.security.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "moe-serving.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Volume and mount of the model, for routers and ranks. */}}
{{- define "moe-serving.modelVolume" -}}
{{- $volume := .Values.model.volume }}
{{- if eq $volume.type "claim" }}
- name: model
  persistentVolumeClaim: {claimName: {{ $volume.claimName | quote }}, readOnly: true}
{{- else if eq $volume.type "hostPath" }}
- name: model
  hostPath: {path: {{ $volume.hostPath | quote }}, type: {{ ternary "DirectoryOrCreate" "Directory" .Values.model.download.enabled }}}
{{- end }}
{{- end -}}

{{- define "moe-serving.modelMount" -}}
{{- $volume := .Values.model.volume }}
{{- if ne $volume.type "bundled" }}
- name: model
  mountPath: {{ $volume.mountPath | quote }}
  {{- with $volume.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  readOnly: true
{{- end }}
{{- end -}}

{{/* Init container that waits for the Job that downloads the weights: (dict "root" $ "image"
.Values.image.router). */}}
{{- define "moe-serving.waitForWeights" -}}
{{- $d := .root.Values.model.download }}
{{- if $d.enabled }}
initContainers:
  - name: weights
    image: {{ include "moe-serving.image" . | quote }}
    imagePullPolicy: {{ .image.pullPolicy | quote }}
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
