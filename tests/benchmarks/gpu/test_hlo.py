"""What is read from modules that XLA has optimized: lines as XLA:GPU prints them."""

from shardline.benchmarks.gpu import hlo

CONVOLUTION = (
    "  %cudnn-conv-bias-activation.39 = (bf16[8,224,224,64]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b, %c), "
    "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
    'custom_call_target="__cudnn$convBiasActivationForward", metadata={op_name="block1_conv1/convolution"}'
)
GOOD = f"""\
HloModule a_inference_forward_backward_1428, is_scheduled=true

%fused_select (param_0.1: bf16[8,7]) -> bf16[8,7] {{
  %param_0.1 = bf16[8,7]{{1,0}} parameter(0)
  ROOT %scatter.3 = s32[6144]{{0}} scatter(%broadcast.1, %bitcast.2, %ones), update_window_dims={{}}, to_apply=%add
}}

ENTRY %main {{
{CONVOLUTION}
  %loop_select_fusion = bf16[8,7]{{1,0}} fusion(%p), kind=kLoop, calls=%fused_select
  ROOT %cublas-gemm.1 = (f32[8,1000]{{1,0}}, s8[0]{{0}}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"
}}
"""


def faults(*lines, **options):
    return hlo.faults(hlo.summarize("\n".join((GOOD, *lines))), **{"dtype": "bf16", **options})


def test_operations_are_counted_in_fusions_too():
    summary = hlo.summarize(GOOD)
    assert summary.operations == {
        "parameter": 1, "integer scatter": 1, "custom-call": 2, "fusion": 1
    }  # fmt: skip
    assert summary.custom_calls == {"__cudnn$convBiasActivationForward": 1, "__cublas$lt$matmul": 1}
    assert summary.convolutions == (hlo.Convolution("__cudnn$convBiasActivationForward", "bf16", hlo.NHWC),)


def test_a_good_module_has_no_faults():
    assert faults() == []


def test_what_gpus_do_badly_is_a_fault():
    sort = "  %sort.1 = (s32[51380224]{0}, bf16[51380224]{0}) sort(%a, %b), dimensions={0}, is_stable=true"
    cub = '  %s = (u32[9]{0}, u8[1]{0}) custom-call(%a), custom_call_target="__cub$DeviceRadixSort"'
    scatter = "  ROOT %scatter.9 = bf16[51380224]{0} scatter(%a, %b, %c), to_apply=%add"
    loop = "  %while.2 = (s32[], f32[8]{0}) while(%t), condition=%c, body=%b"
    plain = "  %convolution.1 = f32[8,7,7,4]{3,2,1,0} convolution(%a, %b), dim_labels=b01f_01io->b01f"
    assert faults(sort) == ["1 sorts"]
    assert faults(sort, cub) == ["2 sorts"]
    assert faults(scatter) == ["1 × float scatter"]
    assert faults(loop) == ["1 × while"]
    assert faults(loop, loops=True) == []
    assert faults(plain) == ["1 × convolution outside cuDNN"]
    assert faults(CONVOLUTION.replace("b01f_o01i->b01f", "bf01_oi01->bf01")) == ["1 convolutions not in NHWC"]
    nchw = CONVOLUTION.replace("b01f_o01i->b01f", "bf01_oi01->bf01").replace("bf16", "f32")
    assert hlo.faults(hlo.summarize(nchw), dtype="f32") == []
    assert faults(CONVOLUTION.replace("bf16", "f32")) == ["1 convolutions not in bf16"]
