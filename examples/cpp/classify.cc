// Runs a plan file on one grey image and prints the class: ./classify model.hgplan
#include <headgate/engine.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: classify model.hgplan\n"), 2;
  try {
    headgate::Engine engine(argv[1], /*threads=*/1);
    const auto in = engine.input_shape(), out = engine.output_shape();
    std::vector<float> image(in.channels * in.height * in.width, 0.5f);  // channels, height, width
    std::vector<float> scores(out.channels * out.height * out.width);
    engine.run(image.data(), /*images=*/1, scores.data());
    const auto best = std::max_element(scores.begin(), scores.end());
    std::printf("class %d, score %.4f\n", static_cast<int>(best - scores.begin()), *best);
    for (const headgate::LayerStats& layer : engine.stats()) {
      if (layer.decisions > 0) std::printf("%s: %.1f %% open\n", layer.name.c_str(), 100.0 * layer.open / layer.decisions);
    }
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
