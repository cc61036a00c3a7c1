//! Stores that a version with manifests of format 3 has left.

use surf_chunker::{Options, Sink};

use super::*;

struct Nobody;

impl Sink for Nobody {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

/// A safetensors file with a large tensor and two small ones, which formats 3 and 4 cut in different places.
fn weights() -> Vec<u8> {
    let header = r#"{"model.layers.0.up.weight":{"dtype":"U8","shape":[300,1000],"data_offsets":[0,300000]},"model.layers.0.norm.weight":{"dtype":"U8","shape":[40],"data_offsets":[300000,300040]},"model.norm.weight":{"dtype":"U8","shape":[60],"data_offsets":[300040,300100]}}"#;
    let data: Vec<u8> = (0..300_100u32).map(|at| (at.wrapping_mul(at) % 251) as u8).collect();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

const CONFIG: &[u8] = br#"{"model_type":"llama"}"#;

/// What an older store holds.
struct Older {
    dir: TempDir,
    /// The user's folder.
    folder: PathBuf,
    id: ModelId,
    /// Every chunk, as it was cut then: every 100,000 bytes.
    chunks: Vec<Chunk>,
    manifest: Manifest,
}

impl Older {
    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self) -> Store {
        open(&self.store())
    }

    fn said(&self, note: &serde_json::Value) {
        fs::create_dir_all(self.store().join("notes")).unwrap();
        fs::write(self.store().join(format!("notes/{}.json", self.id.to_hex())), note.to_string()).unwrap();
        let names = serde_json::json!({"org/tiny": self.id.to_hex()});
        fs::write(self.store().join("aliases.json"), names.to_string()).unwrap();
    }
}

fn older() -> Older {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let (mut chunks, mut files) = (Vec::new(), Vec::new());
    for (path, bytes) in [("config.json", CONFIG.to_vec()), ("model.safetensors", weights())] {
        fs::write(folder.join(path), &bytes).unwrap();
        let of_file: Vec<Chunk> =
            bytes.chunks(100_000).map(|bytes| Chunk::of(Bytes::copy_from_slice(bytes))).collect();
        files.push(FileEntry {
            path: path.to_owned(),
            size: bytes.len() as u64,
            blake3: [0; 32],
            sha256: [0; 32],
            chunks: of_file.iter().map(entry).collect(),
        });
        chunks.extend(of_file);
    }
    // Formats 3 and 4 begin alike: a number, and the files. Then came tensors, and groups.
    let parts = Parts { format: FORMAT, files, ..Parts::default() };
    let mut bytes = Manifest::new(parts).unwrap().encode();
    bytes[0] = 3;
    bytes.push(0);
    let id = ModelId::of(&bytes);
    fs::create_dir_all(dir.path().join("store/manifests")).unwrap();
    fs::write(dir.path().join("store/manifests").join(id.to_hex()), bytes).unwrap();
    let manifest = surf_chunker::cut(&folder, &Options::default(), &Nobody).unwrap();
    Older { dir, folder, id, chunks, manifest }
}

fn keep(older: &Older, chunks: &[Chunk]) {
    for chunk in chunks {
        let path = chunk_file(&older.store(), chunk);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, chunk.bytes()).unwrap();
    }
}

async fn holds_all(store: &Store, manifest: &Manifest) {
    assert!(store.have(manifest.id()).await.unwrap().unwrap().is_full());
    let verified = store.verify(Some(manifest.id()), |_, _| ()).await.unwrap();
    assert_eq!((verified.checked, verified.bad.len()), (manifest.chunks().len(), 0));
}

#[tokio::test]
async fn a_model_that_was_pulled_is_cut_again_under_its_names() {
    let older = older();
    keep(&older, &older.chunks);
    older.said(&serde_json::json!({"version": 1, "pinned": true, "files": []}));
    let store = older.open();
    let new = older.manifest.id();
    assert_ne!(new, older.id);
    assert_eq!(store.renamed(), [(older.id, new)]);
    let models = store.models();
    assert_eq!(models.len(), 1);
    assert_eq!(
        (models[0].id, models[0].pinned, &models[0].aliases[..]),
        (new, true, &["org/tiny".to_owned()][..])
    );
    assert_eq!(store.resolve("org/tiny"), Ok(new));
    holds_all(&store, &older.manifest).await;
    // What only the old manifest named is gone, and the configuration's chunk, which both do, is not.
    assert_eq!(held(&store, &older.chunks), [true, false, false, false, false]);
    drop(store);
    // And once more, from what is on the disk.
    let store = older.open();
    assert_eq!((store.models().len(), store.renamed().len()), (1, 0));
    assert_eq!(store.resolve("org/tiny"), Ok(new));
    holds_all(&store, &older.manifest).await;
    store.unpin(new).await.unwrap();
    store.remove(new).await.unwrap();
    assert_eq!(store.usage().chunks, 0);
}

#[tokio::test]
async fn a_folder_that_was_published_stays_where_it_is() {
    let older = older();
    let files: Vec<serde_json::Value> = ["config.json", "model.safetensors"]
        .iter()
        .enumerate()
        .map(|(at, path)| {
            let path = older.folder.join(path);
            let stamp = super::super::files::Stamp::at(&path).unwrap();
            let mut note = serde_json::to_value(stamp).unwrap();
            note["file"] = at.into();
            note["path"] = path.to_str().unwrap().into();
            note
        })
        .collect();
    older.said(&serde_json::json!({"version": 1, "pinned": false, "files": files}));
    let store = older.open();
    let new = older.manifest.id();
    assert_eq!(store.resolve("org/tiny"), Ok(new));
    holds_all(&store, &older.manifest).await;
    let usage = store.usage();
    assert_eq!((usage.used, usage.referenced), (0, older.manifest.size()));
    drop(store);
    holds_all(&older.open(), &older.manifest).await;
}

#[tokio::test]
async fn what_is_not_all_here_stays_until_it_is_removed() {
    let older = older();
    keep(&older, &older.chunks[..3]);
    older.said(&serde_json::json!({"version": 1, "pinned": true, "files": []}));
    for _ in 0..2 {
        let store = older.open();
        assert!(store.models().is_empty() && store.renamed().is_empty());
        assert_eq!(store.resolve("org/tiny"), Ok(older.id));
        store.gc().await.unwrap();
        assert_eq!(held(&store, &older.chunks), [true, true, true, false, false]);
    }
    let store = older.open();
    let freed = store.remove(older.id).await.unwrap();
    assert_eq!(freed.chunks, 3);
    assert!(matches!(store.resolve("org/tiny"), Err(ResolveError::Unknown(_))));
    drop(store);
    assert_eq!(older.open().usage().chunks, 0);
}

#[tokio::test]
async fn a_manifest_is_checked_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let manifest = model(&[&[chunk(1)]]);
    store.put_manifest(&manifest).await.unwrap();
    assert!(store.disk.index.is_checked(manifest.id()));
    drop(store);
    // What nobody has checked, is: an index that is lost is no way around it.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert!(store.disk.index.is_checked(manifest.id()));
    assert!(store.manifest_of(manifest.id()).is_some());
}
