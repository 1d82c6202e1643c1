#!/bin/sh
# Creates a certificate authority, a certificate for the routers and one for the ranks, in the current
# directory: ca.crt ca.key, tls.crt tls.key, rank.crt rank.key. README.md shows how to create Secrets from them.
#   openssl.sh FULLNAME NAMESPACE [CLUSTER-DOMAIN]
# FULLNAME is the release's full name, the part before "-rest" in the names of its Services
# (helm get notes RELEASE shows it).
set -eu
full=$1 namespace=$2 domain=${3:-cluster.local}
umask 077

names=
for service in rest grpc routers join; do
  for suffix in svc "svc.$domain"; do
    names="$names${names:+,}DNS:$full-$service.$namespace.$suffix"
  done
done

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

key ca.key
openssl req -new -x509 -key ca.key -out ca.crt -days 3650 -subj "/CN=$full CA" \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign

# certificate NAME COMMON-NAME EXTENSION ...
certificate() {
  file=$1 common=$2
  shift 2
  key "$file.key"
  printf '%s\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature \
    subjectKeyIdentifier=hash authorityKeyIdentifier=keyid "$@" > "$file.ext"
  openssl req -new -key "$file.key" -out "$file.csr" -subj "/CN=$common"
  openssl x509 -req -in "$file.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
    -out "$file.crt" -extfile "$file.ext"
  rm "$file.csr" "$file.ext"
}

# The names of all Services: rest and grpc are for clients, routers for the autoscaler and operators,
# join for ranks.
certificate tls "$full" extendedKeyUsage=serverAuth "subjectAltName=$names"
# Ranks present their certificate to the join port, which does not check names.
certificate rank "$full ranks" extendedKeyUsage=clientAuth
