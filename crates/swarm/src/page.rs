//! A page of the documentation that is written from the code.

/// Holds the page against the file of this name in `docs`; with `UPDATE` set, writes it first.
pub(crate) fn assert_up_to_date(name: &str, page: &str) {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page).expect("the page can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/{name} is old: UPDATE=1 cargo test -p replikit-swarm");
}
