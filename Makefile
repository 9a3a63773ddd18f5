# mdpo: every set-up step lives here, so that a fresh Debian machine with cargo, g++, make and python3 (with pip) needs nothing else.
#
#   make demo    DPO, DPO without images and mDPO side by side on the embedded example
#   make test    the tests
#   make check   what CI runs: fmt, clippy, docs, tests
#   make gpu-check  on a machine with an NVIDIA GPU: CUDA against the CPU, and how fast it is (CONTRIBUTING.md)
#   make report-check  the page of `mdpo report` in a headless Chromium, where there is one (docs/report.md)
#   make audit   licences, bans and sources of all dependencies (installs cargo-deny when it is missing)

SHELL := /bin/bash
CARGO ?= cargo
PYTHON ?= python3

# A PyTorch 2.11 that is already installed can be named instead: make test LIBTORCH=/path/to/site-packages/torch
ifdef LIBTORCH
export LIBTORCH
LIBTORCH_READY :=
else
LIBTORCH_READY := .libtorch/ready
endif

.PHONY: libtorch build demo test gpu-check report-check check fmt clippy doc audit clean

libtorch: $(LIBTORCH_READY)

# The three pinned wheels hold everything a CPU run needs; the Python inside them is never run.
.libtorch/ready: libtorch.sha256
	rm -rf .libtorch && mkdir -p .libtorch/wheels
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest .libtorch/wheels \
		--python-version 3.11 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
		torch==2.11.0 nvidia-cuda-cupti==13.0.85 nvidia-cuda-runtime==13.0.96
	cd .libtorch/wheels && sha256sum --check --strict ../../libtorch.sha256
	for wheel in .libtorch/wheels/*.whl; do $(PYTHON) -m zipfile --extract "$$wheel" .libtorch || exit 1; done
	rm -rf .libtorch/wheels
	touch $@

build: libtorch
	$(CARGO) build --release

demo: libtorch
	$(CARGO) run --release --package mdpo-demo

test: libtorch
	$(CARGO) test --workspace

# GPU_INPUTS, a folder of `benchmarks/make_inputs.py --size gpu`, adds the speed of training and the comparison with TRL ($(PYTHON) needs its stack).
gpu-check: libtorch
	$(CARGO) run --release --package mdpo --example gpu_check -- $(if $(GPU_INPUTS),--inputs $(GPU_INPUTS))
	@if [ -n "$(GPU_INPUTS)" ] && nvidia-smi --list-gpus >/dev/null 2>&1; then \
		$(CARGO) build --release --package mdpo && \
		$(PYTHON) benchmarks/compare.py $(GPU_INPUTS) --mdpo target/release/mdpo --dtypes bf16 --rounds 3 --steps 8; \
	fi

# The page's crate needs no libtorch; CHROMIUM names a browser that is not on the path.
report-check:
	$(CARGO) build --package mdpo-measure --example report_page
	$(PYTHON) checks/report/check.py $${CARGO_TARGET_DIR:-target}/debug/examples/report_page target/report-check

fmt:
	$(CARGO) fmt --all --check

clippy: libtorch
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: libtorch
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

check: fmt clippy doc test

audit:
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check licenses bans sources

clean:
	$(CARGO) clean
	rm -rf .libtorch
