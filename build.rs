//! With the feature `torch`, lets programs and tests find libtorch without LD_LIBRARY_PATH. torch-sys, a direct dependency for
//! this purpose, says where it found libtorch.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath={}", folder.to_string_lossy());
    }
}
