{{/* A quantity in the canonical form of Kubernetes (String of resource.Quantity): 0.5 is 500m,
1000m is 1, 1024Mi is 1Gi, 1.5Gi is 1536Mi. (dict "value" NUMBER-OR-STRING "name" FIELD) */}}
{{- define "moe-serving.quantity" -}}
{{- $text := trim (kindIs "string" .value | ternary .value (toJson .value)) -}}
{{- $form := `^([0-9]+\.?[0-9]*|\.[0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][-+]?[0-9]{1,2})?$` -}}
{{- if not (regexMatch $form $text) -}}
{{- fail (printf "%s: %s is not a valid quantity, such as 500m, 2 or 64Gi" .name $text) -}}
{{- end -}}
{{- $number := regexFind `^[0-9.]+` $text -}}
{{- $suffix := trimPrefix $number $text -}}
{{- $fraction := regexFind `\.[0-9]*[1-9]` $number | trimPrefix "." -}}
{{- $digits := printf "%s%s" (regexFind `^[0-9]*` $number) $fraction | regexFind `[1-9][0-9]*$` -}}
{{- $exponent := sub 0 (len $fraction) -}}
{{- $decimal := dict "n" -9 "u" -6 "m" -3 "" 0 "k" 3 "M" 6 "G" 9 "T" 12 "P" 15 "E" 18 -}}
{{- $binary := dict "Ki" 1 "Mi" 2 "Gi" 3 "Ti" 4 "Pi" 5 "Ei" 6 -}}
{{- $given := dict "text" $text "name" .name -}}
{{- if not $digits -}}
0
{{- else if hasKey $binary $suffix -}}
{{- include "moe-serving.binaryQuantity" (merge (dict "digits" $digits "exponent" $exponent "power" (get $binary $suffix)) $given) -}}
{{- else if hasKey $decimal $suffix -}}
{{- include "moe-serving.decimalQuantity" (merge (dict "digits" $digits "exponent" (add $exponent (get $decimal $suffix))) $given) -}}
{{- else -}}
{{- $power := regexFind `[1-9][0-9]*$` $suffix | default "0" | int -}}
{{- $power = ternary (sub 0 $power) $power (contains "-" $suffix) -}}
{{- include "moe-serving.decimalQuantity" (merge (dict "digits" $digits "exponent" (add $exponent $power) "scientific" true) $given) -}}
{{- end -}}
{{- end -}}

{{/* digits x 10^exponent, with the largest exponent that is a multiple of 3 and leaves an integer
mantissa. */}}
{{- define "moe-serving.decimalQuantity" -}}
{{- $zeros := regexFind `0*$` .digits -}}
{{- $digits := trimSuffix $zeros .digits -}}
{{- $exponent := add .exponent (len $zeros) -}}
{{- range until 2 -}}
{{- if mod $exponent 3 -}}
{{- $digits = printf "%s0" $digits -}}
{{- $exponent = sub $exponent 1 -}}
{{- end -}}
{{- end -}}
{{- $suffixes := dict "-9" "n" "-6" "u" "-3" "m" "0" "" "3" "k" "6" "M" "9" "G" "12" "T" "15" "P" "18" "E" -}}
{{- if or (not (hasKey $suffixes (toString $exponent))) (gt (len $digits) 18) -}}
{{- fail (printf "%s: %s is too large or too small a quantity, or has too many digits" .name .text) -}}
{{- end -}}
{{- if and .scientific $exponent -}}
{{- printf "%se%d" $digits $exponent -}}
{{- else -}}
{{- printf "%s%s" $digits (get $suffixes (toString $exponent)) -}}
{{- end -}}
{{- end -}}

{{/* digits x 10^exponent x 1024^power, exponent <= 0, with the largest power of 1024 that leaves
an integer mantissa; in decimal form if the value is below 1024 or not an integer. */}}
{{- define "moe-serving.binaryQuantity" -}}
{{- $size := float64 .digits -}}
{{- range until (int .power) -}}{{- $size = mulf $size 1024.0 -}}{{- end -}}
{{- if ge $size 9e18 -}}
{{- fail (printf "%s: %s is too large a quantity, or has too many digits" .name .text) -}}
{{- end -}}
{{- $bytes := int64 .digits -}}
{{- range until (int .power) -}}{{- $bytes = mul $bytes 1024 -}}{{- end -}}
{{- $exponent := int .exponent -}}
{{- range until (int (sub 0 $exponent)) -}}
{{- if not (mod $bytes 10) -}}
{{- $bytes = div $bytes 10 -}}
{{- $exponent = add $exponent 1 -}}
{{- end -}}
{{- end -}}
{{- if or $exponent (lt $bytes (int64 1024)) -}}
{{- include "moe-serving.decimalQuantity" (dict "digits" (toString $bytes) "exponent" $exponent "name" .name "text" .text) -}}
{{- else -}}
{{- $suffix := "" -}}
{{- range list "Ki" "Mi" "Gi" "Ti" "Pi" "Ei" -}}
{{- if not (mod $bytes 1024) -}}
{{- $bytes = div $bytes 1024 -}}
{{- $suffix = . -}}
{{- end -}}
{{- end -}}
{{- printf "%d%s" $bytes $suffix -}}
{{- end -}}
{{- end -}}
