// The classes of the Neuron runtime that neuronx-distributed keeps in TorchScript; Python does their work (runtime.py).

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/custom_class.h>

#include <cstring>
#include <fstream>

C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1>);

namespace {

using Tensors = c10::Dict<std::string, at::Tensor>;
using Saved = std::tuple<at::Tensor, at::Tensor, int64_t, int64_t>;

at::Tensor bytes(const std::string& text) {
  auto tensor = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(tensor.mutable_data_ptr(), text.data(), text.size());
  return tensor;
}

bool write(const at::Tensor& content, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(content.const_data_ptr()), content.numel());
  return file.good();
}

struct SPMDModel : torch::CustomClassHolder {
  SPMDModel(at::Tensor neff, at::Tensor metaneff, int64_t local_ranks, int64_t world)
      : neff(neff), metaneff(metaneff), local_ranks(local_ranks), world(world) {
    TORCH_CHECK(local_ranks == 1 && world == 1, "the stand-in has one core");
  }

  void initialize(c10::List<Tensors> states, c10::List<Tensors> weights, int64_t) {
    this->states = states.empty() ? Tensors() : states.get(0);
    this->weights = weights.get(0);
    call("load", {});
    initialized = true;
  }

  std::vector<at::Tensor> forward(std::vector<at::Tensor> inputs) {
    TORCH_CHECK(initialized || mock, "not initialized");
    return call(mock ? "example" : "run", inputs);
  }

  std::vector<std::vector<at::Tensor>> forward_async(std::vector<std::vector<at::Tensor>> ranks) {
    return {forward(ranks.at(0))};
  }

  std::vector<at::Tensor> call(const char* name, std::vector<at::Tensor> inputs) {
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("neuron_stand_in::") + name).c_str(), "");
    torch::jit::Stack stack{neff, metaneff, inputs, states, weights};
    op.callBoxed(stack);
    return stack.back().toTensorVector();
  }

  bool save_neff(std::string path) { return write(neff, path); }
  bool save_metaneff(std::string path) { return write(metaneff, path); }

  at::Tensor neff, metaneff;
  int64_t local_ranks, world;
  bool initialized = false, mock = false;
  Tensors states, weights;
};

struct LayoutTransformation : torch::CustomClassHolder {};

}  // namespace

TORCH_LIBRARY_FRAGMENT(neuron_stand_in, m) {
  m.def("load(Tensor neff, Tensor metaneff, Tensor[] inputs, Dict(str, Tensor) states, Dict(str, Tensor) weights) -> Tensor[]");
  m.def("example(Tensor neff, Tensor metaneff, Tensor[] inputs, Dict(str, Tensor) states, Dict(str, Tensor) weights) -> Tensor[]");
  m.def("run(Tensor neff, Tensor metaneff, Tensor[] inputs, Dict(str, Tensor) states, Dict(str, Tensor) weights) -> Tensor[]");
}

TORCH_LIBRARY(neuron, m) {
  m.def("_parallel_load(Dict(str, Tensor)[] checkpoint) -> Dict(str, Tensor)[]");
  m.class_<LayoutTransformation>("LayoutTransformation")
      .def("forward", [](const c10::intrusive_ptr<LayoutTransformation>&, c10::List<Tensors> checkpoint, bool) {
        return checkpoint;
      });
  m.class_<SPMDModel>("SPMDModel")
      .def(torch::init([](std::string neff, std::string metaneff, int64_t local_ranks, int64_t world) {
        return c10::make_intrusive<SPMDModel>(bytes(neff), bytes(metaneff), local_ranks, world);
      }))
      .def("initialize", &SPMDModel::initialize)
      .def("is_initialized", [](const c10::intrusive_ptr<SPMDModel>& self) { return self->initialized || self->mock; })
      .def("set_mock_initialized", [](const c10::intrusive_ptr<SPMDModel>& self, bool mock) { self->mock = mock; })
      .def("forward", &SPMDModel::forward)
      .def("forward_async", &SPMDModel::forward_async)
      .def("forward_ranked", &SPMDModel::forward_async)
      .def("save_neff", &SPMDModel::save_neff)
      .def("save_metaneff", &SPMDModel::save_metaneff)
      .def_pickle(
          [](const c10::intrusive_ptr<SPMDModel>& self) -> Saved {
            return {self->neff, self->metaneff, self->local_ranks, self->world};
          },
          [](Saved saved) {
            return c10::make_intrusive<SPMDModel>(
                std::get<0>(saved), std::get<1>(saved), std::get<2>(saved), std::get<3>(saved));
          });
}
