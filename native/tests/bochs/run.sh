#!/bin/bash
# Runs native tests on CPUs that are not here: Bochs interprets every instruction of a Sapphire Rapids, which has AMX,
# and of a Skylake-X, whose AVX-512 multiplies neither bytes nor bfloat16, under Linux. (QEMU knows neither.) No
# timings.
#
#   run.sh WORK                 builds and runs in the folder WORK, which may be kept: ten minutes, the next time four
#   FILTER=amx_gives run.sh …   of bfloat16_test only tests with this in their name; empty: all of them, 20 minutes
#
# Needs curl, dpkg, patch, xz, cmake, ninja and g++. Installs nothing. Fails where a test does.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(realpath "$here/../../..") work=$(realpath -m "${1:?a folder to work in, as run.sh WORK}")
for tool in curl dpkg patch xz cmake ninja g++; do
  command -v $tool > /dev/null || { echo "run.sh: $tool not found" >&2; exit 1; }
done
mkdir -p "$work/packages" "$work/unpacked" && cd "$work"

# Bochs, its BIOS, Linux and the boot loader of Debian 13; genisoimage of Debian 12, for the libraries that it needs to
# be those of Debian 12. Bochs is built here: Debian's wants a desktop's libraries, and does not run Linux with AMX. A
# package that has left the pool is found at https://snapshot.debian.org by its hash.
packages='
b/bochs/bochs_3.0+dfsg.orig.tar.xz 78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
b/bochs/bochsbios_3.0+dfsg-1_all.deb 13f8f4bdd9bb5c07378b7e39042cb631ebdd41d00b0f1a3091caab17ca946a5b
v/vgabios/vgabios_0.8a+ds-2_all.deb 921cca705c76139df423782979c3e4fe93a246ae3adc143ba17a321decf3544b
b/busybox/busybox-static_1.37.0-6+b9_amd64.deb 598a3fd92bdafc34cd81196b2952ad36e910e47a4ecf162f8ce5e8e262598e53
s/syslinux/isolinux_6.04~git20190206.bf6db5b4+dfsg1-3.1_all.deb d96fefb9b4d563e791346b5d8dee93880891b138326807e3a98bf029f01ea25c
s/syslinux/syslinux-common_6.04~git20190206.bf6db5b4+dfsg1-3.1_all.deb 8138b10dfbca473cc078e5184b9ec527e0e097802a0216e092f87bcbdf69e4ad
c/cdrkit/genisoimage_1.1.11-3.4_amd64.deb 43581533b042ae9ef86cbfb040a394772c412f4c005e77d252302c2c76fc5fe8
l/linux-signed-amd64/linux-image-6.12.107+deb13-cloud-amd64_6.12.107-1_amd64.deb 04434ff520f860423eafe4203d986a35682ce73c2f71baa39e988ca0da93ac91
'
while read -r path hash; do
  [ -n "$path" ] || continue
  file=packages/${path##*/}
  if [ ! -e "$file" ]; then
    curl -fsS "http://deb.debian.org/debian/pool/main/$path" -o "$file.part"
    mv "$file.part" "$file"
  fi
  echo "$hash  $file" | sha256sum --check --quiet
  case $file in *.deb) dpkg -x "$file" unpacked ;; esac
done <<< "$packages"

# One CPU, no screen. The patch says what Bochs has wrong.
if [ ! -x bochs-3.0/bochs ]; then
  rm -rf bochs-3.0 && tar -xf packages/bochs_*.orig.tar.xz
  (
    cd bochs-3.0
    patch -s -p0 < "$here/bochs.patch"
    CFLAGS="-O2 -w" CXXFLAGS="-O2 -w" ./configure --with-nogui --disable-plugins --disable-docbook --disable-readline \
      --enable-cpu-level=6 --enable-x86-64 --enable-fpu --enable-avx --enable-evex --enable-amx --enable-pci \
      --enable-cdrom --enable-all-optimizations
    make
  ) > bochs.log 2>&1 || { tail bochs.log >&2; exit 1; }
fi

# Static, as the guest has no libraries.
tests='bfloat16_test engine_test winograd_test'
cmake -S "$source" -B build -G Ninja -DHEADGATE_NATIVE_TESTS=ON -DCMAKE_EXE_LINKER_FLAGS=-static > cmake.log
ninja -C build $tests > ninja.log || { tail ninja.log >&2; exit 1; }
g++ -std=c++20 -O2 -static -I"$source/native" -I"$source/native/include" "$here/detect.cc" build/native/libheadgate.a \
  -o build/detect
gcc -O2 -static "$here/without_amx.c" -o build/without_amx

# A CD with Linux and, as its initial RAM disk, busybox and the tests.
rm -rf guest cd && mkdir -p guest/bin guest/t guest/proc guest/dev cd
cp unpacked/usr/bin/busybox guest/bin/
install "$here/init.sh" guest/init
cp build/detect build/without_amx guest/t/
for test in $tests; do cp "build/native/tests/$test" guest/t/; done
echo "${FILTER-amx_gives}" > guest/t/filter
(cd guest && find . | LC_ALL=C sort | ../unpacked/usr/bin/busybox cpio -o -H newc 2> /dev/null) | gzip -1 > cd/initrd.gz
cp unpacked/boot/vmlinuz-* cd/vmlinuz
cp unpacked/usr/lib/ISOLINUX/isolinux.bin unpacked/usr/lib/syslinux/modules/bios/ldlinux.c32 cd/
# acpi=off: switching to ACPI enters system management mode, which Bochs leaves with a panic on a Sapphire Rapids.
# reboot=t: a triple fault, at which Bochs ends.
cat > cd/isolinux.cfg << 'CFG'
default linux
prompt 0
label linux
kernel vmlinuz
append initrd=initrd.gz console=ttyS0 acpi=off reboot=t mitigations=off tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1 panic=-1 quiet
CFG
unpacked/usr/bin/genisoimage -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table cd

for model in sapphire_rapids corei7_skylake_x; do
  cat > bochsrc << RC
config_interface: textconfig
display_library: nogui
cpu: model=$model, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=$work/unpacked/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$work/unpacked/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/$model.txt
clock: sync=none
log: $work/bochs.txt
panic: action=fatal
error: action=ignore
info: action=ignore
RC
  rm -f "$model.txt"
  bochs-3.0/bochs -q -f bochsrc < /dev/null > bochs.out 2>&1 || true  # it ends in the triple fault
  sed -n 's/\r$//; /^== Linux/,$ p' "$model.txt"
  case $model in sapphire_rapids) own=without_amx ;; *) own=engine_test ;; esac  # what is run on this CPU alone
  if ! grep -q '^== END, failed: 0' "$model.txt" || ! grep -q "^== ./$own" "$model.txt"; then
    echo "run.sh: a test failed on $model, or Linux did not come up: $work/$model.txt, $work/bochs.txt" >&2
    exit 1
  fi
done
