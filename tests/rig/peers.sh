#!/bin/sh
# Unpacks the peers into the directory $1 (made once): smtp-source, smtp-sink and a private Postfix,
# the name server nsd, the validating resolver unbound, ldns to sign zones, etcd, keepalived, haproxy,
# opendkim, rspamd, pymilter, Dovecot, pflogsumm, postfix_exporter, nginx and Exim. They are fetched with
# apt-get download and unpacked with dpkg -x: nothing is installed, nothing of them starts by itself.
set -eu
into=$1
packages="postfix libdb5.3 libicu72 libnsl2 libtirpc3 libsasl2-2 libssl3 \
  nsd libevent-2.1-7 libfstrm0 libprotobuf-c1 etcd-server \
  unbound libpython3.11 ldnsutils libldns3 libpcap0.8 \
  keepalived libnl-3-200 libnl-genl-3-200 libnftnl11 libmnl0 libsnmp40 libsensors5 libpci3 libwrap0 \
  haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 \
  opendkim libopendkim11 libbsd0 libmd0 libldap-2.5-0 libmemcached11 libhashkit2 \
  libmilter1.0.1 libopendbx1 librbl1 libunbound8 libnghttp2-14 libvbr2 \
  python3-milter rspamd libhyperscan5 libluajit2-5.1-2 libluajit2-5.1-common libsqlite3-0 \
  dovecot-core libexttextcat-2.0-0 liblua5.4-0 libstemmer0d libsodium23 libunwind8 \
  libglib2.0-0 libpcre2-8-0 pflogsumm libdate-calc-perl libcarp-clan-perl libbit-vector-perl \
  prometheus-postfix-exporter libidn12 libgnutls-dane0 nginx libnginx-mod-mail"
exim=exim4-daemon-light exim_least=4.98 # the first that announces LIMITS (RFC 9422)
stamp=$into/fetched
[ "$(cat "$stamp" 2>/dev/null || true)" = "$packages $exim" ] && exit 0
rm -rf "$into"
mkdir -p "$into/debs" "$into/root"
cd "$into/debs"

# apt-get with the options and the command "$@", or the end of all this.
fetch() {
  timeout 300 apt-get -qq -o APT::Sandbox::User=root "$@" >download.log 2>&1 && return
  cat download.log >&2
  echo "rig: not all peers could be fetched; try: apt-get update" >&2
  exit 69
}

# shellcheck disable=SC2086
fetch download $packages
# Exim by itself: where it cannot be had, the one scenario that needs it says so and fails.
fetch_exim() {
  offered=$(apt-cache policy "$exim" | sed -n 's/^ *Candidate: //p')
  if dpkg --compare-versions "$offered" ge "$exim_least"; then
    fetch download "$exim"
  else
    # From this release's backports, at the machine's own mirror, with lists of apt's that are ours.
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" "Component: main" | head -n 1)
    mkdir -p "$into/lists/partial"
    echo "deb $mirror $release-backports main" >"$into/backports.list"
    set -- -o "Dir::Etc::SourceList=$into/backports.list" -o Dir::Etc::SourceParts=/dev/null \
      -o "Dir::State::Lists=$into/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    fetch "$@" update
    fetch "$@" download "$exim"
  fi
}
(fetch_exim) || cp download.log "$into/exim.missing"
for package in *.deb; do dpkg -x "$package" "$into/root"; done
[ -e "$into/exim.missing" ] || echo "$packages $exim" >"$stamp"
