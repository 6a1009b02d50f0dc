{{/* The number of tensor-parallel ranks, and of pipeline stages, in a plan such as tp8pp2. */}}
{{- define "llama31.tp" -}}
{{ regexReplaceAll "^(?:tp([0-9]+))?(?:pp([0-9]+))?$" (.Values.config.plan | default "tp1") "${1}" | default "1" }}
{{- end }}
{{- define "llama31.pp" -}}
{{ regexReplaceAll "^(?:tp([0-9]+))?(?:pp([0-9]+))?$" (.Values.config.plan | default "tp1") "${2}" | default "1" }}
{{- end }}

{{- define "llama31.replicas" -}}
{{- if .Values.config.autoscaling }}{{ .Values.config.autoscaling.max_replicas | int }}
{{- else }}{{ .Values.config.replicas | default 1 | int }}{{ end }}
{{- end }}

{{- define "llama31.device" -}}
{{ dig "engine" "device" "cuda" .Values.config }}
{{- end }}

{{/* GPUs of one engine pod, real ones or the stand-in's logical ones. */}}
{{- define "llama31.gpusPerPod" -}}
{{ if eq (dig "engine" "kind" "vllm" .Values.config) "vllm" }}{{ include "llama31.tp" . }}{{ else }}0{{ end }}
{{- end }}

{{/* "yes" if a flag of config.ingress is set: list $ "serve_without_keys". */}}
{{- define "llama31.isAllowed" -}}
{{ if dig "ingress" (index . 1) false (index . 0).Values.config }}yes{{ end }}
{{- end }}

{{/* Where the weights are in a container; a revision has a directory of its own. */}}
{{- define "llama31.checkpoint" -}}
/weights/{{ .Values.config.model }}{{ with .Values.weights.revision }}-{{ . }}{{ end }}
{{- end }}

{{/* "yes" where weights come from outside: the stand-in makes its own. */}}
{{- define "llama31.hasWeights" -}}
{{ if or .Values.weights.hostPath .Values.weights.claim }}yes{{ end }}
{{- end }}

{{/* The tree that `llama31 serve --config` reads: the user's, and what the pods make true. */}}
{{- define "llama31.serviceConfig" -}}
{{- $ingress := dict
  "host" "0.0.0.0" "port" 9000 "http_port" 8000
  "metrics_host" "0.0.0.0" "metrics_port" 9400 "serve_metrics_openly" true
  "max_per_node" (int .Values.ingress.processesPerPod)
  "node_labels" (dict "llama31.role" "ingress") -}}
{{- if .Values.access.tenantsSecret }}
{{- $_ := set $ingress "auth" (dict "tenants_file" "/etc/llama31/tenants/tenants.yaml") }}
{{- end }}
{{- if .Values.access.tlsSecret }}
{{- $tls := dict "cert_file" "/etc/llama31/tls/tls.crt" "key_file" "/etc/llama31/tls/tls.key" }}
{{- if .Values.access.clientCertificates }}{{ $_ := set $tls "client_ca_file" "/etc/llama31/tls/ca.crt" }}{{ end }}
{{- $_ := set $ingress "tls" $tls }}
{{- end }}
{{- $engine := dict "node_labels" (dict "llama31.role" "engine") -}}
{{- if include "llama31.hasWeights" . }}{{ $_ := set $engine "checkpoint" (include "llama31.checkpoint" .) }}{{ end }}
{{- toYaml (mustMergeOverwrite (omit .Values.config "replicas" | deepCopy) (dict "ingress" $ingress "engine" $engine)) }}
{{- end }}

{{/* What KubeRay puts to Ray Serve. Serve's own proxies are off: the ingress pods have their own doors. Numbers of
     processes stand apart from the arguments: Serve replaces every process when an argument changes. */}}
{{- define "llama31.serveConfig" -}}
proxy_location: Disabled
applications:
  - name: llama31
    import_path: deployments.app:build
    route_prefix: null
    deployments:
      {{- if .Values.config.autoscaling }}
      - {name: engine}
      {{- else }}
      - {name: engine, num_replicas: {{ include "llama31.replicas" . }}}
      {{- end }}
      - {name: ingress, num_replicas: {{ mul .Values.ingress.pods .Values.ingress.processesPerPod }}}
    args:
      {{- include "llama31.serviceConfig" . | nindent 6 }}
{{- end }}
