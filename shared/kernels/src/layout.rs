//! Between ONNX' order (channels outermost) and ours.

/// `[channels, pixels]` as `[pixels, channels]`.
///
/// # Panics
/// Where the lengths are not `channels * pixels`.
pub fn channels_last(input: &[i8], channels: usize, output: &mut [i8]) {
    transpose(input, channels, output);
}

/// `[pixels, channels]` as `[channels, pixels]`.
///
/// # Panics
/// Where the lengths are not `channels * pixels`.
pub fn channels_first(input: &[i8], channels: usize, output: &mut [i8]) {
    let pixels = input.len() / channels;
    transpose(input, pixels, output);
}

/// `[rows, columns]` as `[columns, rows]`, in squares that stay in the cache.
fn transpose(input: &[i8], rows: usize, output: &mut [i8]) {
    const SQUARE: usize = 32;
    assert!(rows > 0 && input.len().is_multiple_of(rows) && input.len() == output.len(), "a whole matrix");
    let columns = input.len() / rows;
    for first_row in (0..rows).step_by(SQUARE) {
        let of_square = first_row..(first_row + SQUARE).min(rows);
        for first in (0..columns).step_by(SQUARE) {
            for column in first..(first + SQUARE).min(columns) {
                let output = &mut output[column * rows..][of_square.clone()];
                for (output, row) in output.iter_mut().zip(of_square.clone()) {
                    *output = input[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (channels, pixels) in [(1, 1), (3, 70), (33, 64), (40, 1)] {
            let input: Vec<i8> = (0..channels * pixels).map(|at| (at * 31) as i8).collect();
            let (mut last, mut first) = (vec![0; input.len()], vec![0; input.len()]);
            channels_last(&input, channels, &mut last);
            assert_eq!(last[..channels], (0..channels).map(|c| input[c * pixels]).collect::<Vec<_>>());
            channels_first(&last, channels, &mut first);
            assert_eq!(first, input);
        }
    }
}
