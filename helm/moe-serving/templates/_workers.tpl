{{/* Environment of all Ray containers. */}}
{{- define "moe-serving.rayEnvironment" -}}
- {name: HOME, value: /home/serving}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_process_group_cleanup_enabled, value: "1"}
- {name: RAY_worker_niceness, value: "0"}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end -}}

{{/* The worker group of a pool: (dict "root" $ "pool" POOL "security" S). Its replicas are pods;
a group of ranks may take several. */}}
{{- define "moe-serving.workerGroup" -}}
{{- $root := .root -}}
{{- $given := .pool -}}
{{- $s := .security -}}
{{- $pool := include "moe-serving.pool" (dict "root" $root "pool" $given) | fromJson -}}
{{- $who := dict "root" $root "pool" $given "component" "ranks" -}}
{{- $rdma := $given.rdma -}}
{{- $cpus := mulf $pool.ranksPerPod (addf 1 $pool.cpusPerRank) -}}
- groupName: {{ $pool.name | quote }}
  replicas: {{ int64 $pool.pods }}
  minReplicas: {{ int64 $pool.pods }}
  maxReplicas: {{ int64 $pool.maxPods }}
  # Defaults of the CRD and the operator; ray.operatorVersion determines which fields exist.
  numOfHosts: 1
  {{- if semverCompare ">=1.7.0-0" (printf "%s.0" $root.Values.ray.operatorVersion) }}
  priority: 0
  {{- end }}
  scaleStrategy: {}
  rayStartParams:
    num-cpus: {{ ceil $cpus | int | quote }}
    num-gpus: {{ $pool.gpusPerPod | int | quote }}
    object-store-memory: "100000000"
    # JSON in single quotes, which the shell and the parsers of KubeRay and Ray all accept.
    resources: {{ printf "'{\"pool-%s\": 1}'" $pool.name | quote }}
  template:
    metadata:
      {{- $labels := merge (dict "moe-serving/pool" $given.base) (default dict $root.Values.scheduling.podLabels) }}
      {{- if ne $given.base $given.name }}
      {{- $_ := set $labels "moe-serving/group-slot" $given.name }}
      {{- end }}
      {{- $annotations := merge (dict "checksum/settings" (include "moe-serving.rankSettings" $who | fromJson | toJson | sha256sum)) (default dict $root.Values.scheduling.podAnnotations) }}
      {{- if and $rdma $rdma.networks }}
      {{- $_ := set $annotations "k8s.v1.cni.cncf.io/networks" $rdma.networks }}
      {{- end }}
      {{- include "moe-serving.podMetadata" (merge (dict "labels" $labels "annotations" $annotations) $who) | nindent 6 }}
    spec:
      {{- with $root.Values.model.stream.serviceAccount }}
      # For the cloud's workload identity; the token of the Kubernetes API is still not mounted.
      serviceAccountName: {{ . | quote }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- include "moe-serving.pullSecrets" $root | nindent 6 }}
      securityContext:
        {{- include "moe-serving.poolPodSecurity" $who | nindent 8 }}
      # Time for the hook below plus the time that Ray takes to stop.
      terminationGracePeriodSeconds: {{ add (int $root.Values.engine.drainTimeout) 45 }}
      {{- include "moe-serving.poolPlacement" $who | trim | nindent 6 }}
      {{- include "moe-serving.waitForWeights" (dict "root" $root "image" $root.Values.image.engine) | nindent 6 }}
      containers:
        - name: ranks
          image: {{ include "moe-serving.image" (dict "root" $root "image" $root.Values.image.engine) | quote }}
          imagePullPolicy: {{ $root.Values.image.engine.pullPolicy | quote }}
          securityContext:
            {{- include "moe-serving.poolContainerSecurity" $who | nindent 12 }}
          env:
            {{- include "moe-serving.poolEnvironment" $who | nindent 12 }}
          {{- with $root.Values.model.stream.existingSecret }}
          envFrom:
            - secretRef: {name: {{ . | quote }}}
          {{- end }}
          lifecycle:
            preStop:
              # Ranks announce the drain to every router over their links; Ray would kill them
              # without notice.
              exec: {command: [moe-serving, leave, --timeout, {{ .root.Values.engine.drainTimeout | quote }}]}
          ports:
            - {name: serve, containerPort: 8000}
            - {name: metrics, containerPort: 8080}
          resources:
            {{- include "moe-serving.rankResources" $who | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: home, mountPath: /home/serving}
            - {name: shared-memory, mountPath: /dev/shm}
            {{- if $given.hugePages }}
            - {name: huge-pages, mountPath: /dev/hugepages}
            {{- end }}
            {{- if $s.joinToken.existingSecret }}
            - {name: join, mountPath: /etc/moe-serving/join, readOnly: true}
            {{- end }}
            {{- if $s.joinTls.enabled }}
            - {name: join-tls, mountPath: /etc/moe-serving/join-tls, readOnly: true}
            {{- end }}
            {{- include "moe-serving.modelMount" $root | nindent 12 }}
      volumes:
        - {name: tmp, emptyDir: {}}
        - {name: home, emptyDir: {}}
        - name: shared-memory
          emptyDir: {medium: Memory, sizeLimit: {{ include "moe-serving.quantity" (dict "value" (default (ternary "16Gi" "1Gi" $pool.gpu) $given.sharedMemory) "name" "sharedMemory") | quote }}}
        {{- with $given.hugePages }}
        - {name: huge-pages, emptyDir: {medium: "HugePages-{{ .size }}"}}
        {{- end }}
        {{- if $s.joinToken.existingSecret }}
        - name: join
          secret:
            secretName: {{ $s.joinToken.existingSecret | quote }}
            defaultMode: 0440
            items: [{key: {{ $root.Values.security.joinToken.secretKey | quote }}, path: token}]
        {{- end }}
        {{- if $s.joinTls.enabled }}
        - name: join-tls
          secret:
            defaultMode: 0440
            {{- if $s.joinTls.rankSecret }}
            secretName: {{ $s.joinTls.rankSecret | quote }}
            {{- else }}
            secretName: {{ $s.joinTls.existingSecret | quote }}
            # Ranks need only the CA certificate, not the routers' key.
            items: [{key: ca.crt, path: ca.crt}]
            {{- end }}
        {{- end }}
        {{- include "moe-serving.modelVolume" $root | nindent 8 }}
{{- end -}}

{{/* Resources of a rank container of a pool: (dict "root" $ "pool" POOL). Counts of extended
resources are strings, as the API server stores them. */}}
{{- define "moe-serving.rankResources" -}}
{{- $given := .pool -}}
{{- $pool := include "moe-serving.pool" . | fromJson -}}
{{- $extra := dict -}}
{{- if $pool.gpu -}}
{{- $_ := set $extra (default "nvidia.com/gpu" $given.gpuResource) (int $pool.gpusPerPod | toString) -}}
{{- end -}}
{{- with $given.rdma -}}
{{- $_ := set $extra .resource (int (default 1 .count) | toString) -}}
{{- end -}}
{{- with $given.hugePages -}}
{{- $_ := set $extra (printf "hugepages-%s" .size) .amount -}}
{{- end -}}
requests:
  {{- merge (dict "cpu" $given.resources.cpu "memory" $given.resources.memory) $extra | toYaml | nindent 2 }}
limits:
  {{- merge (dict "memory" $given.resources.memory) $extra | toYaml | nindent 2 }}
{{- end -}}
