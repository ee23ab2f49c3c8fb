// EFFT_PREFIX: where install-native put the library.
fn main() {
    println!("cargo:rerun-if-env-changed=EFFT_PREFIX");
    if let Ok(prefix) = std::env::var("EFFT_PREFIX") {
        println!("cargo:rustc-link-search=native={prefix}/lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{prefix}/lib");
    }
    println!("cargo:rustc-link-lib=dylib=efft");
}
