{{/* The operator's name, and that of what belongs to it. Fixed: see values.yaml. */}}
{{- define "larder.operator" -}}larder-operator{{- end }}

{{/* What a Service and a Deployment find the operator's pods by. */}}
{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/component: operator
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The full name of an image: dict "image" VALUES "root" $. */}}
{{- define "larder.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
