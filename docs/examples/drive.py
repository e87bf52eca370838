import lingbot

world = lingbot.load_world("blockworld")
with world.new_session("outputs/demo/first_frame.png", prompt="noon, grass", seed=0) as session:
    frames = session.step("w")  # uint8 [T, 96, 160, 3]; w is held through the chunk
    for frames in session.drive("w-24,jw-24"):
        print(frames.shape, session.report.key_to_frame_ms)
