//! Stamps the build time, the floor of the agent's clock: a device whose clock restarts in 1970 still
//! accepts certificates. `SOURCE_DATE_EPOCH` makes the stamp reproducible.

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse::<u64>().ok());
    println!("cargo:rustc-env=MUSTER_BUILD_EPOCH_S={}", given.unwrap_or_else(now_s));
}

// A build script has no Clock to take.
#[allow(clippy::disallowed_methods)]
fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_secs())
}
