{{/* The doors, on CPU nodes: stable endpoints while engines come and go. */}}
{{- define "llama31.ingressGroup" -}}
groupName: ingress
labels:
  llama31.role: ingress
replicas: {{ .Values.ingress.pods }}
minReplicas: {{ .Values.ingress.pods }}
maxReplicas: {{ .Values.ingress.pods }}
rayStartParams:
  object-store-memory: "1000000000"
template:
  metadata:
    labels:
      {{- include "llama31.component" (list . "ingress") | nindent 6 }}
  spec:
    {{- include "llama31.podCommon" (list . "ingress" .Values.ingress) | nindent 4 }}
    {{- with .Values.ingress.affinity }}
    affinity: {{- toYaml . | nindent 6 }}
    {{- end }}
    topologySpreadConstraints:
      {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
      - topologyKey: {{ . }}
        maxSkew: 1
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels:
            {{- include "llama31.component" (list $ "ingress") | nindent 12 }}
        matchLabelKeys: [ray.io/cluster]
      {{- end }}
    {{- if eq (include "llama31.tokenizerFrom" .) "source" }}
    initContainers:
      {{- include "llama31.fetchContainer" (list . .Values.ingress.cpus .Values.ingress.memory "--tokenizer-only") | nindent 6 }}
    {{- end }}
    containers:
      - name: ingress
        {{- include "llama31.containerSecurity" . | nindent 8 }}
        {{- include "llama31.rayContainer" (list . "ingress" .Values.ingress (dict)) | nindent 8 }}
        {{- include "llama31.ingressProbes" . | nindent 8 }}
        ports:
          - {name: grpc, containerPort: 9000}
          - {name: http, containerPort: 8000}
          - {name: service-metrics, containerPort: 9400}
        env:
          {{- include "llama31.env" . | nindent 10 }}
          {{- include "llama31.noGpuEnv" . | nindent 10 }}
        volumeMounts:
          {{- include "llama31.mounts" . | nindent 10 }}
          {{- include "llama31.ingressMounts" . | nindent 10 }}
    volumes:
      {{- include "llama31.volumes" . | nindent 6 }}
      {{- include "llama31.ingressVolumes" . | nindent 6 }}
{{- end }}

{{/* Ready when the model answered for the first time and the process does not drain. A door whose replicas are all
     lost stays an endpoint: it tells clients when to come back. */}}
{{- define "llama31.ingressProbes" -}}
{{- $ready := dict "grpc" (dict "port" 9000) }}
{{- $started := dict "grpc" (dict "port" 9000 "service" (printf "model:%s" .Values.config.model)) }}
{{- if .Values.access.clientCertificates }}
{{- /* The kubelet has no certificate. */}}
{{- $ready = dict "tcpSocket" (dict "port" 9000) }}
{{- $started = dict "exec" (dict "command" (list "llama31" "ready")) }}
{{- else if .Values.access.tlsSecret }}
{{- $ready = dict "httpGet" (dict "path" "/ready" "port" 8000 "scheme" "HTTPS") }}
{{- $started = $ready }}
{{- end -}}
# Patience for a cold start: 4 hours.
startupProbe:
  {{- toYaml $started | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 1440
readinessProbe:
  {{- toYaml $ready | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{/* A door needs the tokenizer only: fetched, or from a volume that this node has too. */}}
{{- define "llama31.tokenizerFrom" -}}
{{- if not (include "llama31.hasWeights" .) }}{{ else if or .Values.weights.claim (not .Values.weights.source) }}volume{{ else }}source{{ end }}
{{- end }}

{{- define "llama31.ingressMounts" -}}
{{- if include "llama31.tokenizerFrom" . }}
- {name: weights, mountPath: /weights, readOnly: true}
{{- end }}
{{- if .Values.access.tenantsSecret }}
- {name: tenants, mountPath: /etc/llama31/tenants, readOnly: true}
{{- end }}
{{- if .Values.access.tlsSecret }}
- {name: tls, mountPath: /etc/llama31/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "llama31.ingressVolumes" -}}
{{- if eq (include "llama31.tokenizerFrom" .) "volume" }}
{{ include "llama31.weightsVolume" . }}
{{- else if include "llama31.tokenizerFrom" . }}
- name: weights
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
{{- with .Values.access.tenantsSecret }}
- name: tenants
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.access.tlsSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
