//! Lets this crate's own test binaries find libtorch without LD_LIBRARY_PATH.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    // Cargo does not hand link arguments on to dependents: their build scripts read this and repeat it.
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
}
