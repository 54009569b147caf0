#!/usr/bin/env bash
# LLVM, as llvmlite 0.45.1 brings it (LLVM 20), compiling for x86-64 with AVX-512. Compilers of OpenCL drivers do the
# same: POCL 3.0 and 3.1 (LLVM 14 and 15).
#
# Seen: sixteen integers of 32 bits are cut to 16 and stored with !nontemporal. Without AVX-512 the store is vmovntdq, as
# asked. With AVX-512 conversion and store become one instruction, vpmovdw to memory: an ordinary store, for which the
# processor reads the line first. With an empty inline assembly between the two, or without the cut, the hint is kept.
#
# Why it surprises: the hint is dropped without a remark, only where a value is narrowed just before it is stored, and
# only on processors with AVX-512. A kernel that writes bfloat16 reads what it is about to overwrite.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q llvmlite==0.45.1

cat >seen.py <<'PY'
import llvmlite.binding as llvm

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
BODIES = {
    "cut to 16 bits": "%s = trunc <16 x i32> %v to <16 x i16>",
    "cut, with empty assembly between": """%t = trunc <16 x i32> %v to <16 x i16>
  %s = call <16 x i16> asm sideeffect "", "=x,0"(<16 x i16> %t)""",
    "not cut": "%w = shufflevector <16 x i32> %v, <16 x i32> undef, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>\n"
    "  %s = bitcast <8 x i32> %w to <16 x i16>",
}
TEXT = """
define void @f(ptr %p, <16 x i32> %v) {{
  {body}
  store <16 x i16> %s, ptr %p, align 32, !nontemporal !0
  ret void
}}
!0 = !{{i32 1}}
"""
target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
for cpu in ("x86-64-v3", "x86-64-v4"):
    machine = target.create_target_machine(cpu=cpu, opt=3)
    for name, body in BODIES.items():
        text = machine.emit_assembly(llvm.parse_assembly(TEXT.format(body=body)))
        stores = [line.split()[0] for line in text.splitlines() if line.strip().startswith("v") and line.rstrip().endswith("(%rdi)")]
        print(f"{cpu}, {name}: {' '.join(stores)}")
PY

cat >expected <<'TXT'
x86-64-v3, cut to 16 bits: vmovntdq
x86-64-v3, cut, with empty assembly between: vmovntps
x86-64-v3, not cut: vmovntps
x86-64-v4, cut to 16 bits: vpmovdw
x86-64-v4, cut, with empty assembly between: vmovntps
x86-64-v4, not cut: vmovntps
TXT

venv/bin/python -I seen.py | tee seen
diff expected seen
