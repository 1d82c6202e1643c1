{{/* The model's weights: volumes of the head and the routers, and downloads. */}}

{{/* "true" if the weights are downloaded onto every node, otherwise empty. */}}
{{- define "moe-serving.weightsOnNodes" -}}
{{- if and .Values.model.download.enabled (eq .Values.model.volume.type "hostPath") -}}true{{- end -}}
{{- end -}}

{{/* Model volume of the head, which reads no weights and whose node may lack the directory. */}}
{{- define "moe-serving.headModelMount" -}}
{{- if ne .Values.model.volume.type "hostPath" }}{{ include "moe-serving.modelMount" . }}{{ end -}}
{{- end -}}

{{- define "moe-serving.headModelVolume" -}}
{{- if ne .Values.model.volume.type "hostPath" }}{{ include "moe-serving.modelVolume" . }}{{ end -}}
{{- end -}}

{{/* Model volume of the routers, which read only the configuration and the tokenizer. If the
weights are on the nodes of the ranks, a router downloads these few megabytes into a volume of its
pod. */}}
{{- define "moe-serving.routerModelVolume" -}}
{{- if include "moe-serving.weightsOnNodes" . }}
- name: model
  emptyDir: {sizeLimit: 1Gi}
{{- else -}}
{{- include "moe-serving.modelVolume" . -}}
{{- end -}}
{{- end -}}

{{- define "moe-serving.routerWeights" -}}
{{- if include "moe-serving.weightsOnNodes" . }}
initContainers:
  {{- include "moe-serving.fetchWeights" (dict "root" . "arguments" (list "--without-weights") "resources" (dict "requests" (dict "cpu" "50m" "memory" "256Mi") "limits" (dict "memory" "1Gi"))) | nindent 2 }}
{{- else -}}
{{- include "moe-serving.waitForWeights" (dict "root" . "image" .Values.image.router) -}}
{{- end -}}
{{- end -}}

{{/* A container that downloads weights: (dict "root" $ "arguments" LIST "resources" MAP). Its pod
must have the volumes tmp and model; model must be writable for security.runAsUser. */}}
{{- define "moe-serving.fetchWeights" -}}
{{- $d := .root.Values.model.download -}}
- name: weights
  image: {{ include "moe-serving.image" (dict "root" .root "image" .root.Values.image.router) | quote }}
  imagePullPolicy: {{ .root.Values.image.router.pullPolicy | quote }}
  command: [moe-serving]
  args: [weights, fetch, {{ $d.repository | quote }}, {{ .root.Values.model.path | quote }}, --revision, {{ $d.revision | quote }}{{ range .arguments }}, {{ . | quote }}{{ end }}]
  securityContext:
    {{- include "moe-serving.containerSecurity" .root | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
    {{- with $d.existingSecret }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $d.secretKey | quote }}}}
    {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- include "moe-serving.writableModelMount" .root | nindent 4 }}
{{- end -}}

{{- define "moe-serving.writableModelMount" -}}
- name: model
  mountPath: {{ .Values.model.volume.mountPath | quote }}
  {{- with .Values.model.volume.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end -}}

{{/* Spec of the Job that downloads onto a claim. */}}
{{- define "moe-serving.weightsJob" -}}
# Each retry continues an interrupted download.
backoffLimit: 20
template:
  metadata:
    {{- include "moe-serving.podMetadata" (dict "root" $ "component" "weights") | nindent 4 }}
  spec:
    restartPolicy: OnFailure
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- include "moe-serving.pullSecrets" . | nindent 4 }}
    securityContext:
      {{- include "moe-serving.podSecurity" . | nindent 6 }}
    {{- include "moe-serving.dns" (dict "root" $ "hostNetwork" false) | nindent 4 }}
    containers:
      {{- include "moe-serving.fetchWeights" (dict "root" $ "resources" .Values.model.download.resources) | nindent 6 }}
    volumes:
      - {name: tmp, emptyDir: {}}
      - name: model
        persistentVolumeClaim: {claimName: {{ .Values.model.volume.claimName | quote }}}
{{- end -}}
