//! The definition, one product after the other: what every kernel is held against.

use crate::{Requantize, Shape, Weights};

/// The convolution as ONNX writes it. `input` is `[height, width, channels]`; so is the answer.
#[must_use]
pub fn reference(shape: &Shape, weights: &Weights<'_>, requantize: &Requantize, input: &[i8]) -> Vec<i8> {
    let [out_height, out_width] = shape.output();
    let group_in = shape.channels_in / shape.groups;
    let group_out = shape.channels_out / shape.groups;
    let mut output = Vec::with_capacity(out_height * out_width * shape.channels_out);
    for y in 0..out_height {
        for x in 0..out_width {
            for channel in 0..shape.channels_out {
                let first_in = channel / group_out * group_in;
                let mut sum = weights.bias.map_or(0, |bias| bias[channel]);
                for ky in 0..shape.kernel[0] {
                    for kx in 0..shape.kernel[1] {
                        let Some(pixel) = shape.pixel([y, x], [ky, kx]) else { continue };
                        for c in 0..group_in {
                            let weight =
                                ((channel * group_in + c) * shape.kernel[0] + ky) * shape.kernel[1] + kx;
                            let value = i32::from(input[pixel * shape.channels_in + first_in + c])
                                - i32::from(weights.input_zero);
                            sum = sum.wrapping_add(value * i32::from(weights.values[weight]));
                        }
                    }
                }
                output.push(requantize.one(sum, requantize.multipliers[channel]));
            }
        }
    }
    output
}
