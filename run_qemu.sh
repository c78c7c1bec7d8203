#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# From a fresh machine to the truth about real guests' stage-2 tables.  This file holds the command line only;
# each step is in fixtures/setup/.
set -euo pipefail

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
readonly REPO
# shellcheck source=fixtures/setup/ui.sh
source "$REPO/fixtures/setup/ui.sh"
# shellcheck source=fixtures/setup/packages.sh
source "$REPO/fixtures/setup/packages.sh"
# shellcheck source=fixtures/setup/kernel.sh
source "$REPO/fixtures/setup/kernel.sh"
# shellcheck source=fixtures/setup/python.sh
source "$REPO/fixtures/setup/python.sh"
# shellcheck source=fixtures/setup/guest.sh
source "$REPO/fixtures/setup/guest.sh"
# shellcheck source=fixtures/setup/workload.sh
source "$REPO/fixtures/setup/workload.sh"
# shellcheck source=fixtures/setup/trace.sh
source "$REPO/fixtures/setup/trace.sh"
# shellcheck source=fixtures/setup/machine.sh
source "$REPO/fixtures/setup/machine.sh"
# shellcheck source=fixtures/setup/commands.sh
source "$REPO/fixtures/setup/commands.sh"

usage() {
    cat <<'END'
Usage: ./run_qemu.sh [OPTIONS] [COMMAND]

Boots an arm64 KVM host with guests under QEMU and inspects it.  Installs, fetches and builds what is missing.

Commands
  (none)            the tour: boot, show the host, its VMs, memslots and stage-2 tables, check them, clean up
  trace             boot a machine that is traced from its start, hold every stage-2 operation against the
                    invalidation protocol, clean up; what ends (a workload, a guest, --scenario random) is followed to
                    its end
  start             boot and leave the machine running
  prepare           install, fetch and build what a machine of these options needs, and print where it is; boots nothing
  stop              end a machine that was started
  status            tell whether a machine is running, and how to reach it
  send LINE         have the exerciser in a started machine do something, and show its answer (`send help`)
  run [--] CMD...   run CMD beside the machine, with `inspector` on PATH and already told where to connect;
                    a temporary machine is used when none was started
  build SOURCE...   build a small arm64 host kernel from a tree, a tarball or a linux-source package's file, and print
                    the folder with its Image and vmlinux; then --patch FILE and --edit FILE (repeatable), --revision REV
                    of the tree, --page-size 4k|16k|64k, --debug-kernel (KASAN, lockdep …)
  selftests SOURCE  build the kernel's KVM selftests that work on guests' memory, statically, from such a source, and
                    print the folder with the programs: each is a --workload
  test              set up, fetch the kernels that the tests need, then ruff check, ruff format --check and
                    mypy --strict, then pytest; the first that fails ends it
  test ARGS...      the same without ruff and mypy: pytest with ARGS

Machine
  --kernel WHAT     an arm64 Image (plain, or packed with gzip, xz, lzma, bzip2, zstd, lz4 or lzop, as a uImage or
                    for EFI zboot), or a kernel of Debian: a suite (trixie), or a series (6.12), with -16k for the
                    flavour with 16K pages (6.12-16k).
                    Default: this Debian release's own linux-image-cloud-arm64
  --vmlinux FILE    the vmlinux of that kernel, for `inspector`
  --cpu MODEL       QEMU's CPU model (default: max)
  --smp N           CPUs (default: 2)
  --memory MB       memory in MiB (default: 1024)
  --gic-version N   2 or 3 (default: 3)
  --append TEXT     more kernel command line
  --scenario NAME   what the exerciser does (default: default)
                    random: random actions from a seed (random,seed=7,actions=20000)
  --initramfs FILE  use this in place of the exerciser's
  --ready TEXT      what the console prints once the guests run (default: the exerciser's line; "" does not wait)
  --gdb-port N      gdb's stub on 127.0.0.1:N (default: a unix socket)
  --qemu PATH       this qemu-system-aarch64
  --trace           start it so that `inspector trace` can follow it (QEMU 10.0 or newer, which is fetched where the
                    machine's own is older)
  -o, --output FILE of trace: keep it, for `inspector replay`
  --deterministic   the same each time: time is counted in instructions, on one CPU, clocks and entropy are fixed, no
                    KASLR; give it all to do with --scenario (NAME,NAME...): what is sent later comes when it comes
  --boot-timeout S  seconds until the guests must run (default: 180)
  --owner PID       of start: the machine ends when that process has
  --name NAME       which machine: several can run side by side (default: default)
  --run-dir DIR     where its sockets and console log are (default: one for NAME in the temporary folder)

Workload
  --workload PROG   run this static arm64 program in the host in place of a scenario; words after -- are its arguments
                    (not of `run`, whose own they are)
  --selftests DIR   bring those along: `send run program NAME` runs one
  --guest linux     have the host run Debian's QEMU with KVM, and in it a Linux of the same kernel, which boots, works a
                    little and powers off (fetches Debian's arm64 packages; --memory 2560 unless given)
  --workload-timeout S  seconds that it may take (default: 900)

Set-up
  --cache DIR       kernels, builds, Python packages (default: ${XDG_CACHE_HOME:-~/.cache}/kvm-stage2-inspector)
  --no-install      install no packages
  -h, --help        this text

Exit codes
  0 clean, 1 findings, 2 usage or bad input, 3 the target could not be reached or was lost,
  125 could not be tested (nothing could be installed or fetched, the kernel did not boot, or nothing was found but
  the workload failed or did not end in time);
  `run` and `test` return what CMD and pytest return.

Examples
  ./run_qemu.sh
  ./run_qemu.sh --kernel ~/linux/arch/arm64/boot/Image --vmlinux ~/linux/vmlinux
  ./run_qemu.sh start --cpu cortex-a57 --smp 1
  ./run_qemu.sh run -- inspector walk 0x40001000
  ./run_qemu.sh stop
  ./run_qemu.sh trace --kernel 6.12
  ./run_qemu.sh trace --scenario random,seed=7,actions=20000 -o random.s2trace
  ./run_qemu.sh trace --workload ./memslot_perf_test -- -n 5
  ./run_qemu.sh trace --guest linux
  ./run_qemu.sh --kernel 6.12 run -- inspector check --json
  ./run_qemu.sh selftests ~/linux
  ./run_qemu.sh build ~/linux --patch 0001-foo.patch
  ./run_qemu.sh test tests/live -k boot
END
}

value() { # OPTION VALUE...: the option's value
    (($# >= 2)) || usage_error "$1 needs a value"
    printf '%s' "$2"
}

number() { # OPTION VALUE...: a positive decimal number
    local given
    given=$(value "$@") || exit
    [[ $given =~ ^[1-9][0-9]{0,6}$ ]] || usage_error "$1 needs a number, not '$given'"
    printf '%s' "$given"
}

command=""
arguments=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --kernel) KERNEL=$(value "$@"); shift ;;
        --vmlinux) VMLINUX=$(value "$@"); shift ;;
        --cpu) CPU=$(value "$@"); shift ;;
        --smp) SMP=$(number "$@"); SMP_GIVEN=yes; shift ;;
        --memory) MEMORY=$(number "$@"); MEMORY_GIVEN=yes; shift ;;
        --gic-version) GIC=$(number "$@"); shift ;;
        --append) APPEND=$(value "$@"); shift ;;
        --scenario) SCENARIO=$(value "$@"); shift ;;
        --initramfs) INITRAMFS=$(value "$@"); shift ;;
        --ready) READY_GIVEN=yes; READY=$(value "$@"); shift ;;
        --gdb-port) GDB_PORT=$(number "$@"); shift ;;
        --qemu) QEMU=$(value "$@"); shift ;;
        --trace) TRACE=yes ;;
        --deterministic) DETERMINISTIC=yes ;;
        -o | --output) OUTPUT=$(value "$@"); shift ;;
        --workload) WORKLOAD=$(value "$@"); shift ;;
        --selftests) SELFTESTS=$(value "$@"); shift ;;
        --guest) GUEST=$(value "$@"); shift ;;
        --workload-timeout) WORKLOAD_TIMEOUT=$(number "$@"); shift ;;
        --boot-timeout) BOOT_TIMEOUT=$(number "$@"); shift ;;
        --owner) OWNER=$(number "$@"); shift ;;
        --name) NAME=$(value "$@"); shift ;;
        --run-dir) RUN_DIR=$(value "$@"); shift ;;
        --cache) CACHE=$(value "$@"); shift ;;
        --no-install) INSTALL=no ;;
        --) shift; arguments=("$@"); break ;;
        -*)
            usage_error "unknown option $1"
            ;;
        start | stop | status | trace | prepare)
            [[ -z $command ]] || usage_error "one command at a time: $command or $1"
            command=$1
            ;;
        run | test | send | build | selftests)
            [[ -z $command ]] || usage_error "one command at a time: $command or $1"
            command=$1
            # Everything after `test` is pytest's, after `build` and `selftests` the builder's; `run` and `send` take options until their own words begin.
            if [[ $command == test || $command == build || $command == selftests ]]; then
                shift
                [[ ${1-} != -- ]] || shift
                arguments=("$@")
                break
            fi
            ;;
        *)
            [[ $command == run || $command == send ]] || usage_error "unknown command '$1'"
            arguments=("$@")
            break
            ;;
    esac
    shift
done

check_options "$command" ${arguments[@]+"${arguments[@]}"}
on_exit_clean_up
case $command in
    "") tour ;;
    start) start ;;
    prepare) prepare ;;
    trace) trace ;;
    stop) stop ;;
    status) status ;;
    send) send "${arguments[*]}" ;;
    run) run_beside "${arguments[@]}" ;;
    build | selftests) build "$command" ${arguments[@]+"${arguments[@]}"} ;;
    test) run_tests ${arguments[@]+"${arguments[@]}"} ;;
esac
