{{/* Jobs that check the fabric of a unit before its ranks start. */}}
{{- define "moe-serving.fabricCheckObjects" -}}
{{- $f := .Values.fabricCheck }}
{{- if $f.enabled }}
{{- $hooks := join "," $f.hooks }}
{{- $component := "fabric-check" }}
{{- $who := dict "root" $ "component" $component }}
{{- range (include "moe-serving.pools" . | fromJsonArray) }}
{{- $given := . }}
{{- $pool := include "moe-serving.pool" (dict "root" $ "pool" .) | fromJson }}
{{- if gt (int $pool.groups) 0 }}
{{- $about := dict "root" $ "pool" $given "component" $component }}
{{- $name := include "moe-serving.poolObject" (dict "root" $ "part" "fabric" "name" .name) }}
{{- $service := printf "%s.%s.svc.%s" $name $.Release.Namespace $.Values.clusterDomain }}
---
# Peers resolve the first peer by this name, even before it is ready.
apiVersion: v1
kind: Service
metadata:
  name: {{ $name | quote }}
  {{- include "moe-serving.metadata" (merge (dict "annotations" (dict "helm.sh/hook" $hooks "helm.sh/hook-weight" "-10" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded")) $who) | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "moe-serving.selector" $who | nindent 4 }}
    moe-serving/check: {{ $name | quote }}
  ports:
    - {name: rendezvous, port: {{ int64 $f.port }}, targetPort: {{ int64 $f.port }}}
---
# One pod per pod of a group, with the placement and resources of the rank pods. The release is
# installed only if all-to-all between them works over the NICs. Pools without groups are not
# checked.
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name | quote }}
  # Failed Jobs are kept for their logs, which Helm 4 prints.
  {{- $hook := dict "helm.sh/hook" $hooks "helm.sh/hook-weight" "0" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" "helm.sh/hook-output-log-policy" "hook-failed" }}
  {{- $labels := merge (dict "moe-serving/pool" .base) (default dict $f.labels) }}
  {{- include "moe-serving.metadata" (merge (dict "labels" $labels "annotations" $hook) $who) | nindent 2 }}
spec:
  completionMode: Indexed
  completions: {{ $pool.podsPerGroup }}
  parallelism: {{ $pool.podsPerGroup }}
  backoffLimit: 0
  activeDeadlineSeconds: {{ int64 $f.deadlineSeconds }}
  ttlSecondsAfterFinished: {{ int64 $f.keepSeconds }}
  template:
    metadata:
      {{- $labels := merge (dict "moe-serving/pool" .base "moe-serving/check" $name) (default dict $f.podLabels) }}
      {{- if ne .base .name }}
      {{- $_ := set $labels "moe-serving/group-slot" .name }}
      {{- end }}
      {{- $annotations := deepCopy (default dict $f.podAnnotations) }}
      {{- with (default (dict) .rdma).networks }}
      {{- $_ := set $annotations "k8s.v1.cni.cncf.io/networks" . }}
      {{- end }}
      {{- include "moe-serving.podMetadata" (merge (dict "labels" $labels "annotations" $annotations) $who) | nindent 6 }}
    spec:
      subdomain: {{ $name | quote }}
      restartPolicy: Never
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- include "moe-serving.pullSecrets" $ | nindent 6 }}
      securityContext:
        {{- include "moe-serving.poolPodSecurity" $about | nindent 8 }}
      {{- include "moe-serving.poolPlacement" $about | trim | nindent 6 }}
      containers:
        - name: fabric
          image: {{ include "moe-serving.image" (dict "root" $ "image" $.Values.image.engine) | quote }}
          imagePullPolicy: {{ $.Values.image.engine.pullPolicy | quote }}
          command: [moe-serving]
          args:
            - fabric-check
            - --peers
            - {{ $pool.podsPerGroup | quote }}
            - --index
            - $(JOB_COMPLETION_INDEX)
            - --leader
            - "{{ $name }}-0.{{ $service }}:{{ int64 $f.port }}"
            - --backend
            - {{ $f.backend | quote }}
            - --workers-per-peer
            - {{ mul $pool.ranksPerPod $pool.tensor | quote }}
            - --timeout
            - {{ int64 $f.timeout | quote }}
          terminationMessagePolicy: FallbackToLogsOnError
          securityContext:
            {{- include "moe-serving.poolContainerSecurity" $about | nindent 12 }}
          env:
            {{- include "moe-serving.environment" (dict "entries" (include "moe-serving.poolEnvironment" $about | fromYamlArray)) | nindent 12 }}
            {{- if not (hasKey (default (dict) .env) "NODE_NAME") }}
            # Node name for messages.
            - name: NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
            {{- end }}
          resources:
            {{- include "moe-serving.rankResources" $about | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: home, mountPath: /home/serving}
            - {name: shared-memory, mountPath: /dev/shm}
            {{- if .hugePages }}
            - {name: huge-pages, mountPath: /dev/hugepages}
            {{- end }}
      volumes:
        - {name: tmp, emptyDir: {}}
        - {name: home, emptyDir: {}}
        - name: shared-memory
          emptyDir: {medium: Memory, sizeLimit: {{ include "moe-serving.quantity" (dict "value" (default (ternary "16Gi" "1Gi" $pool.gpu) .sharedMemory) "name" "sharedMemory") | quote }}}
        {{- with .hugePages }}
        - {name: huge-pages, emptyDir: {medium: "HugePages-{{ .size }}"}}
        {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The NetworkPolicy of all fabric checks. */}}
{{- define "moe-serving.fabricCheckPolicy" -}}
{{- if .Values.fabricCheck.enabled }}
{{- $hooks := join "," .Values.fabricCheck.hooks }}
{{- $who := dict "root" $ "component" "fabric-check" }}
{{- if .Values.networkPolicy.enabled }}
---
# The check runs before the other policies of the release exist.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: "{{ include "moe-serving.fullname" . }}-fabric-check"
  {{- include "moe-serving.metadata" (merge (dict "annotations" (dict "helm.sh/hook" $hooks "helm.sh/hook-weight" "-10" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded")) $who) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "moe-serving.selector" $who | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector:
            matchLabels:
              {{- include "moe-serving.selector" $who | nindent 14 }}
  egress:
    - to:
        - podSelector:
            matchLabels:
              {{- include "moe-serving.selector" $who | nindent 14 }}
    {{- with .Values.networkPolicy.dns }}
    - to:
        {{- toYaml . | nindent 8 }}
      ports:
        {{- include "moe-serving.dnsPorts" $ | nindent 8 }}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}
