// C++'s reading of checkpoints and its language model, for tests: Python has its own.
#include <pybind11/stl.h>

#include <cstring>

#include "arrays.hpp"
#include "charrnn_fast/language_model.hpp"
#include "charrnn_fast/registry.hpp"
#include "storage/safetensors.hpp"

namespace charrnn_fast::bindings {
namespace {

// {name: (dtype, shape, data)}
py::dict read_safetensors(const py::bytes& file) {
  const std::string_view data = file;
  if (data.size() < safetensors_start) throw py::value_error("the file must have a header");
  const std::uint64_t bytes =
      safetensors_header_bytes(reinterpret_cast<const unsigned char*>(data.data()));
  const std::string_view rest = data.substr(safetensors_start);
  if (bytes > rest.size()) throw py::value_error("the header must be complete");
  const SafetensorsHeader header = read_safetensors_header(
      std::string(rest.substr(0, static_cast<std::size_t>(bytes))), data.size());
  const std::string_view tensors = rest.substr(static_cast<std::size_t>(bytes));
  if (tensors.size() != header.data_bytes) throw py::value_error("the data must be complete");
  py::dict found;
  for (const Tensor& t : header.tensors)
    found[py::str(t.name)] =
        py::make_tuple(t.dtype, t.shape, py::bytes(tensors.substr(t.begin, t.end - t.begin)));
  return found;
}

TextOptions text_options(Index length, const py::bytes& prime, double temperature, Index top_k,
                         double top_p, const std::vector<std::string>& stop,
                         const std::string& weights, double repetition_penalty,
                         Index repetition_window) {
  return {length,
          prime,
          temperature,
          top_k,
          top_p,
          stop,
          storage_named(weights),
          repetition_penalty,
          repetition_window};
}

std::vector<py::bytes> as_bytes(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

std::optional<Compute> compute_of(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  return compute_named(*name);
}

}  // namespace

void register_language_models(py::module_& m) {
  py::register_exception<CheckpointError>(m, "CheckpointError", PyExc_ValueError);
  m.def("read_safetensors", &read_safetensors, py::arg("data"));
  py::class_<TextOptions>(m, "TextOptions")
      .def(py::init(&text_options), py::arg("length"), py::arg("prime") = py::bytes(),
           py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
           py::arg("stop") = std::vector<std::string>(), py::arg("weights") = "",
           py::arg("repetition_penalty") = 1.0, py::arg("repetition_window") = 64);
  py::class_<LanguageModel>(m, "LanguageModel")
      .def_static(
          "load",
          [](const std::string& path, const std::optional<std::string>& compute_dtype) {
            const auto compute = compute_of(compute_dtype);
            py::gil_scoped_release release;
            return LanguageModel::load(path, compute);
          },
          py::arg("path"), py::arg("compute_dtype") = py::none())
      .def_static(
          "from_memory",
          [](const py::bytes& checkpoint, const std::optional<std::string>& compute_dtype) {
            const std::string_view data = checkpoint;
            return LanguageModel::from_memory(data.data(), data.size(), compute_of(compute_dtype));
          },
          py::arg("checkpoint"), py::arg("compute_dtype") = py::none())
      .def(
          "sample",
          [](const LanguageModel& self, const TextOptions& options,
             const std::vector<std::uint64_t>& seeds) {
            return as_bytes(self.sample(options, seeds));
          },
          py::arg("options"), py::arg("seeds"))
      .def(
          "stream",
          [](const LanguageModel& self, const TextOptions& options, std::uint64_t seed) {
            std::vector<std::string> pieces;
            TextStream stream = self.stream(options, seed);
            for (std::string piece; stream.next(piece);) pieces.push_back(piece);
            return as_bytes(pieces);
          },
          py::arg("options"), py::arg("seed"))
      .def(
          "beam_search",
          [](const LanguageModel& self, const TextOptions& options, Index beam) {
            const Likeliest found = self.beam_search(options, beam);
            return py::make_tuple(py::bytes(found.text), found.log_probability);
          },
          py::arg("options"), py::arg("beam"))
      .def(
          "next_probabilities",
          [](const LanguageModel& self, const py::bytes& prime, const std::string& weights) {
            return self.next_probabilities(prime, storage_named(weights));
          },
          py::arg("prime"), py::arg("weights") = "")
      .def(
          "evaluate",
          [](const LanguageModel& self, const py::bytes& text, const std::string& weights) {
            return self.evaluate(std::string_view(text), storage_named(weights));
          },
          py::arg("text"), py::arg("weights") = "")
      .def(
          "score",
          [](const LanguageModel& self, const std::vector<std::string>& texts,
             const std::string& weights) { return self.score(texts, storage_named(weights)); },
          py::arg("texts"), py::arg("weights") = "")
      .def("parameters", [](const py::object& self) {
        const auto& model = self.cast<const LanguageModel&>();
        py::dict found;
        const auto add = [&](const auto& network) {
          if (!network) return;
          for (const Parameter& p : network->network().parameters())
            found[py::str(p.name)] =
                parameter_on(network->network().device(), p, network->parameters(), self);
        };
        add(model.network<float>());
        add(model.network<double>());
        return found;
      });
}

}  // namespace charrnn_fast::bindings
