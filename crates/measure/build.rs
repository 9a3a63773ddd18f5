//! With the feature `libtorch` the tests are linked with it, and must find it without LD_LIBRARY_PATH.

fn main() {
    if let Ok(lib) = std::env::var("DEP_MDPO_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,--as-needed");
    }
}
