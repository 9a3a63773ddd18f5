//! Lets the binary and the tests find libtorch without LD_LIBRARY_PATH, and links only the libtorch libraries that are called:
//! CUDA is loaded at run time, so that one binary runs on machines with and without it.

fn main() {
    let lib = std::env::var("DEP_MDPO_TORCH_EXT_LIBTORCH_LIB").expect("torch-ext names libtorch's folder");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
}
