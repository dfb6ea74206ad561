#!/bin/sh
# Between cargo and rustc, see .cargo/config.toml: where symbols are stripped, which is what is
# released, the builder's directories go too, so that one source gives one file wherever it is
# built. Other builds keep the true paths, for debuggers and messages.
#
#   tools/rustc.sh RUSTC ARGUMENT...
case " $* " in
*" strip=symbols "*)
    exec "$@" --remap-path-prefix="${RUSTUP_HOME:-$HOME/.rustup}=rustup" \
        --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=cargo" \
        --remap-path-prefix="${OUT_DIR:-/nowhere}=out" \
        --remap-path-prefix="${0%/tools/*}=stek_share"
    ;;
*) exec "$@" ;;
esac
