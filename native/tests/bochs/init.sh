#!/bin/busybox sh
# The guest's /init: runs what run.sh put into /t; results go to the serial port.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mkdir -p /tmp
cd /t
failed=0
check() { echo "== $*"; "$@" || { echo "== failed: $*"; failed=1; }; }

echo "== $($b uname -sr),$($b grep -m1 'model name' /proc/cpuinfo | $b cut -d: -f2)"
if $b grep -qw amx_bf16 /proc/cpuinfo; then
  check ./detect vnni bf16 amx
  check ./without_amx ./detect vnni bf16
  check ./bfloat16_test $($b cat filter)
else
  check ./detect
  check ./engine_test
  check ./winograd_test groups
fi
echo "== END, failed: $failed"
$b sleep 1  # the serial port writes on
$b reboot -f
