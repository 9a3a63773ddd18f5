//! Compiles `src/*.cpp` against libtorch's headers, lets this crate's own test binaries find libtorch without LD_LIBRARY_PATH,
//! and says which libtorch it is.

use std::path::Path;

/// The library of threads that libtorch's wheels bring.
const OPENMP: &str = "libgomp.so.1";

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let headers = Path::new(&lib).parent().expect("the folder of the libraries lies in libtorch's own").join("include");
    let sources = ["ext.cpp", "fused.cpp", "composed.cpp", "group.cpp", "lanes.cpp"].map(|name| format!("src/{name}"));
    let others = ["composed.h", "kernels.h", "guard.h", "gloo"].map(|name| format!("src/{name}"));
    for file in sources.iter().chain(&others) {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17");
    // Headers of the system kind: their warnings are not ours.
    build.flag("-isystem").flag(&headers).flag("-isystem").flag(headers.join("torch/csrc/api/include"));
    // The loops of kernels.h are made of what these ask for, in debug builds too.
    for flag in ["-ffp-contract=fast", "-fno-trapping-math", "-fno-math-errno"] {
        build.flag(flag);
    }
    build.opt_level(3);
    // libtorch's own threads: the same library, so that there is one pool of them. Without it, fused.cpp says that it is of no use.
    if Path::new(&lib).join(OPENMP).exists() {
        build.flag("-fopenmp");
        println!("cargo:rustc-link-lib=dylib:+verbatim={OPENMP}");
    }
    // The part of c10d's headers that is about Gloo, with what it names of gloo's own.
    build.define("USE_C10D_GLOO", None).include("src");
    build.files(sources).compile("torch_ext");
    // What they call; libtorch's CUDA libraries are opened at run time (`src/cuda.rs`).
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Cargo does not hand link arguments on to dependents: their build scripts read this and repeat it.
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
    // A wheel says it in `version.py`, an unpacked libtorch in `build-version`.
    let read = |name: &str| std::fs::read_to_string(Path::new(&lib).join("..").join(name));
    let python = read("version.py").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = '").map(str::to_owned))?;
        Some(line.trim_end_matches('\'').to_owned())
    });
    let version = python.or_else(|| read("build-version").ok()).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=LIBTORCH_VERSION={}", version.trim());
}
