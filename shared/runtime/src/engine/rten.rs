//! rten: small, with kernels chosen at run time.
//!
//! Its work runs on a pool of one thread that all plans share: an agent's pipelines each have a thread of their own already.

use std::sync::{Arc, LazyLock};

use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::{EngineError, Plan, Run, RunError};
use crate::manifest::{InputSpec, OutputSpec};
use crate::prepare::mismatch_unless;

static POOL: LazyLock<Arc<ThreadPool>> = LazyLock::new(|| Arc::new(ThreadPool::with_num_threads(1)));

/// It keeps no state between runs: plan and session are the same.
#[derive(Clone, Debug)]
struct Rten {
    model: Arc<Model>,
    input: NodeId,
    output: NodeId,
    shape: Vec<usize>,
}

pub(super) fn load(
    onnx: Vec<u8>,
    input: &InputSpec,
    output: &OutputSpec,
) -> Result<Box<dyn Plan>, EngineError> {
    let failed = |step: &'static str, detail: String| EngineError::Build { step, detail };
    let model = ModelOptions::with_all_ops()
        .prepack_weights(true)
        .load(onnx)
        .map_err(|error| failed("reads the graph", error.to_string()))?;
    let node = |name: &str| model.node_id(name).map_err(|error| failed("reads the graph", error.to_string()));
    let (from, to) = (node(&input.name)?, node(&output.name)?);
    let plan = Rten { model: Arc::new(model), input: from, output: to, shape: input.shape.clone() };
    let found = plan.answer(&vec![0.0; input.elements()]);
    let found = found.map_err(|error| failed("tries the graph", error.to_string()))?;
    mismatch_unless(found.shape() == output.shape, "output.shape", || {
        (format!("{:?}", found.shape()), format!("{:?}", output.shape))
    })?;
    Ok(Box::new(plan))
}

impl Rten {
    fn answer(&self, input: &[f32]) -> Result<Tensor<f32>, RunError> {
        let view = TensorView::from_data(self.shape.as_slice(), input);
        let options = RunOptions::default().with_thread_pool(Some(POOL.clone()));
        let answers =
            self.model.run(vec![(self.input, ValueOrView::from(view))], &[self.output], Some(options));
        let mut answers = answers.map_err(|error| RunError::Engine { detail: error.to_string() })?;
        answers
            .pop()
            .and_then(rten::Value::into_tensor)
            .ok_or_else(|| RunError::Engine { detail: "the output is no f32 tensor".into() })
    }
}

impl Plan for Rten {
    fn session(&self) -> Result<Box<dyn Run>, RunError> {
        Ok(Box::new(self.clone()))
    }
}

impl Run for Rten {
    fn run(&mut self, input: &[f32]) -> Result<Vec<f32>, RunError> {
        Ok(self.answer(input)?.into_data())
    }
}
