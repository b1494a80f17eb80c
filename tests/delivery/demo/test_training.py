from exitlens.delivery.demo import training
from exitlens.delivery.demo.training import EGT, DemoSettings, _read_progress, build_network, load_data


def test_the_two_test_sets_differ_in_their_backgrounds_only():
    data = load_data(DemoSettings(limit=8))
    assert set(data) == {"train", "validation", "calibration", *training.CONDITIONS}
    agreeing, disagreeing = (data[name] for name in training.CONDITIONS)
    assert (agreeing.labels == disagreeing.labels).all()
    assert (agreeing.masks == disagreeing.masks).all()
    assert (agreeing.images != disagreeing.images).any()


def test_networks_before_training():
    train = load_data(DemoSettings(limit=8))["train"]
    net = build_network(EGT, train, 0)
    assert net.num_exits == 4
    assert net.is_channels_last  # fit gives it back so, and bundles record it
    assert build_network(None, train, 0).num_exits == 1
    assert net.fingerprint() == build_network(EGT, train, 0).fingerprint()


def test_progress_is_read_from_the_log(tmp_path):
    assert _read_progress(tmp_path / "log.csv") == (0, "starting")
    (tmp_path / "log.csv").write_text("epoch,accuracy_exit0,accuracy_exit1,cc_exit0\n1,0.5,0.75,0.25\n")
    assert _read_progress(tmp_path / "log.csv") == (1, "epoch 1: val accuracy 50.0 75.0 %, map CC with final 0.25")
