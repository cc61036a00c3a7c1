//! What a configuration says about how weights are stored, where their type alone does not say it.

use super::{EngineError, fields::Fields, files::Files};

/// What the rows and columns of a tile are, where a configuration with float8 weights does not say:
/// transformers' own default.
const TILE: [usize; 2] = [128, 128];

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Rows and columns of the tiles of float8 weights that have a scale each.
    pub(crate) tile: Option<[usize; 2]>,
}

impl Stored {
    /// What `config.json` says.
    pub(crate) fn read(files: &Files) -> Result<Self, EngineError> {
        Self::of(&Fields::new(&files.object("config.json")?))
    }

    fn of(fields: &Fields<'_>) -> Result<Self, EngineError> {
        let Some(quantization) = fields.object("quantization_config")? else { return Ok(Self::default()) };
        match quantization.text("quant_method")? {
            Some("fp8") => (),
            Some(other) => {
                let reason = format!("is {other:?}; of quantised weights, only \"fp8\" is supported");
                return Err(quantization.invalid("quant_method", reason));
            }
            None => return Err(quantization.invalid("quant_method", "is missing")),
        }
        const SIZE: &str = "weight_block_size";
        let tile = match quantization.list(SIZE)? {
            Some(sizes) => {
                let side = |at: usize| {
                    let side = sizes.get(at)?.as_u64().filter(|side| (1..=1 << 20).contains(side))?;
                    usize::try_from(side).ok()
                };
                match (sizes.len(), side(0), side(1)) {
                    (2, Some(rows), Some(cols)) => Some([rows, cols]),
                    _ => return Err(quantization.invalid(SIZE, "must be the rows and columns of a tile")),
                }
            }
            None if quantization.has(SIZE) => None,
            None => Some(TILE),
        };
        Ok(Self { tile })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tile(quantization: Value) -> Result<Option<[usize; 2]>, String> {
        let config = json!({"quantization_config": quantization});
        let stored = Stored::of(&Fields::new(config.as_object().unwrap()));
        stored.map(|stored| stored.tile).map_err(|error| error.to_string())
    }

    #[test]
    fn tiles_are_as_the_configuration_says() {
        assert_eq!(tile(Value::Null), Ok(None));
        assert_eq!(tile(json!({"quant_method": "fp8"})), Ok(Some([128, 128])));
        assert_eq!(tile(json!({"quant_method": "fp8", "weight_block_size": [16, 32]})), Ok(Some([16, 32])));
        assert_eq!(tile(json!({"quant_method": "fp8", "weight_block_size": null})), Ok(None));
        for size in [json!([128]), json!([128, 0]), json!([1, 2, 3]), json!([1, u64::MAX]), json!(["a", 1])] {
            let error = tile(json!({"quant_method": "fp8", "weight_block_size": size})).unwrap_err();
            assert!(error.starts_with("config.json: quantization_config.weight_block_size "), "{error}");
        }
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        for method in ["gptq", "awq", "bitsandbytes", "compressed-tensors"] {
            let error = tile(json!({"quant_method": method, "bits": 4})).unwrap_err();
            let start = format!("config.json: quantization_config.quant_method is {method:?}; ");
            assert!(error.starts_with(&start), "{error}");
        }
        assert!(tile(json!({})).unwrap_err().contains("quant_method is missing"));
    }
}
