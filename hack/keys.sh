# shellcheck shell=bash
# Keys for throw-away control planes, made without a key tool; to be sourced.

# A P-256 key in PEM for the tokens of ServiceAccounts: an RFC 5915 ECPrivateKey without its optional public half,
# around a random number below the order of the curve.
signing_key() {
  echo '-----BEGIN EC PRIVATE KEY-----'
  {
    printf '\x30\x31\x02\x01\x01\x04\x20\x01'
    head -c 31 /dev/urandom
    printf '\xa0\x0a\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07'
  } | base64 -w 64
  echo '-----END EC PRIVATE KEY-----'
}

random_hex() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
