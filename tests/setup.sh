#!/bin/sh
# Installs what the tests, the demo and the benchmark need on a Debian machine that has only a Rust
# toolchain. Touches nothing, and needs no network, when everything is there.
set -eu

missing=
need() { # need COMMAND PACKAGE
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need mke2fs e2fsprogs
need losetup mount
need setpriv util-linux
need fusermount3 fuse3
need fuse2fs fuse2fs
need fio fio
need setfattr attr
need xfs_io xfsprogs
need setfacl acl
need sqlite3 sqlite3
need cc gcc
need git git
need tar tar
need fakeroot fakeroot
need genext2fs genext2fs

if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi

# As udev sets it on every Debian machine; where udev does not run, rootless mounts would fail.
if [ -c /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then $sudo chmod 666 /dev/fuse; fi

[ -n "$missing" ] || exit 0
echo "setup: installing$missing"
$sudo apt-get update -q
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $missing
