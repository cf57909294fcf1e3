//! `cargo run --release --example person_detection`: the convolutions of MobileNetV1 x 0.25 at 96 x 96 (MLPerf Tiny's person
//! detection) on each instruction set of this processor: the least of many runs, in microseconds, layer by layer and in sum.

use muster_kernels::{Convolution, Invalid, Isa, Requantize, Scratch, Shape, Weights};
use std::time::Instant;

const RUNS: usize = 300;
/// Input size, channels in, channels out, kernel, stride, depthwise.
const LAYERS: [(usize, usize, usize, usize, usize, bool); 27] = {
    const fn pair(
        size: usize,
        channels: usize,
        out: usize,
        stride: usize,
    ) -> [(usize, usize, usize, usize, usize, bool); 2] {
        [(size, channels, channels, 3, stride, true), (size / stride, channels, out, 1, 1, false)]
    }
    let pairs = [
        pair(48, 8, 16, 1),
        pair(48, 16, 32, 2),
        pair(24, 32, 32, 1),
        pair(24, 32, 64, 2),
        pair(12, 64, 64, 1),
        pair(12, 64, 128, 2),
        pair(6, 128, 128, 1),
        pair(6, 128, 128, 1),
        pair(6, 128, 128, 1),
        pair(6, 128, 128, 1),
        pair(6, 128, 128, 1),
        pair(6, 128, 256, 2),
        pair(3, 256, 256, 1),
    ];
    let mut layers = [(96, 3, 8, 3, 2, false); 27];
    let mut at = 0;
    while at < 26 {
        layers[at + 1] = pairs[at / 2][at % 2];
        at += 1;
    }
    layers
};

fn main() -> Result<(), Invalid> {
    for isa in Isa::available() {
        let mut all = 0.0;
        for (size, channels_in, channels_out, kernel, stride, is_depthwise) in LAYERS {
            let end = kernel / 2;
            // As TensorFlow pads: what stride 2 does not need is not there.
            let begin = if stride == 2 { 0 } else { end };
            let groups = if is_depthwise { channels_in } else { 1 };
            let shape = Shape {
                input: [size; 2],
                channels_in,
                channels_out,
                kernel: [kernel; 2],
                stride: [stride; 2],
                dilation: [1; 2],
                pad_begin: [begin; 2],
                pad_end: [end; 2],
                groups,
            };
            let values: Vec<i8> = (0..channels_out * channels_in / groups * kernel * kernel)
                .map(|at| (at * 37) as i8)
                .collect();
            let weights = Weights { values: &values, bias: None, input_zero: -128 };
            let requantize =
                Requantize { multipliers: vec![0.001; channels_out], zero: -128, min: i8::MIN, max: i8::MAX };
            let input: Vec<i8> = (0..shape.input_elements()).map(|at| (at * 73) as i8).collect();
            let mut output = vec![0; shape.output_elements()];
            let convolution = Convolution::on(isa, shape, &weights, requantize)?;
            let mut scratch = Scratch::default();
            let least = (0..RUNS)
                .map(|_| {
                    let began = Instant::now();
                    convolution.run(&input, &mut output, &mut scratch);
                    began.elapsed().as_secs_f64() * 1e6
                })
                .fold(f64::INFINITY, f64::min);
            let kind = if is_depthwise { "depthwise" } else { "dense" };
            println!(
                "{isa:?} {size:>3} {channels_in:>3} -> {channels_out:>3} {kernel}x{kernel}/{stride} {kind:<9} {least:>8.2}"
            );
            all += least;
        }
        println!("{isa:?} all {all:.0}");
    }
    Ok(())
}
