"""Everyday scenarios for the bundled sample data, as plain data.

Every sentence was written for this project. ``make_sample.py`` turns the scenarios into dialogues and summaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Phrasings = tuple[str, ...]
"""Equivalent phrasings, one of which is drawn at random."""


@dataclass(frozen=True)
class Scenario:
    """One kind of dialogue between an asker, who wants something, and a helper.

    All texts are ``str.format`` templates that may name the scenario's slots. The summaries may also name ``{asker}``
    and ``{helper}``, which become the speaker tags. The two speak in turn, and whoever speaks first is ``#Person1#``:
    the helper in a dialogue with the optional opening, otherwise the asker.
    """

    topic: str
    """What the dialogue is about, in a few words."""
    slots: Mapping[str, tuple[str, ...]]
    """The possible values of each slot."""
    opening: Phrasings
    """An optional first turn, spoken by the helper."""
    turns: tuple[Phrasings, ...]
    """The turns of every dialogue; the asker speaks the first one."""
    summary: str
    """The usual wording of the summary."""
    paraphrases: Phrasings
    """Alternative summaries, used as additional references of the test split."""
    closing: tuple[Phrasings, ...] = field(default=())
    """Optional last turns, of which a dialogue has none, some or all, in order."""


# Slot values that several scenarios share.

NAMES = ("Anna", "Tom", "Emma", "Jack", "Lucy", "Peter")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
DAYS = (*WEEKDAYS, "Saturday", "Sunday")
WORK_HOURS = ("nine", "ten", "eleven", "two", "three", "four")
EVENING_HOURS = ("six", "seven", "eight", "nine")
NUMBERS = ("two", "three", "four", "five", "six")
PRICES = ("twenty", "thirty", "forty", "fifty", "sixty")
COLOURS = ("black", "brown", "red", "blue", "white", "green")

# Closing turns that several scenarios share.

THANKS = ("Thank you very much for your help.", "Great, thank you for your help.", "That's very kind. Thank you.")
WELCOME = ("You're welcome. Have a nice day.", "No problem. Have a nice day.", "You're welcome. Goodbye.")


SCENARIOS = (
    Scenario(
        topic="book a table",
        slots={"number": NUMBERS, "day": DAYS, "hour": EVENING_HOURS},
        opening=(
            "Good morning, this is the Garden Restaurant.",
            "Hello, Garden Restaurant. How can I help you?",
        ),
        turns=(
            (
                "Hello, I'd like to book a table for {day} evening, please.",
                "Good morning. Do you have a free table on {day} evening?",
                "Hi, can I book a table for {day} evening?",
            ),
            (
                "Let me see. How many people are coming?",
                "Yes, of course. How many people will there be?",
                "Just a moment, please. How many people are you?",
            ),
            (
                "There will be {number} of us. Can we sit by the window?",
                "We are {number} people, and we would like to sit by the window.",
                "A table for {number}, please. We would like to sit in the garden.",
            ),
            (
                "That's no problem. What time would you like to come?",
                "Of course. At what time will you be here?",
                "We'll find a place for you. When will you arrive?",
            ),
            (
                "We'll be there at {hour} o'clock.",
                "At {hour} o'clock, please.",
                "We'd like to eat at {hour} o'clock.",
            ),
            (
                "Very good. The table is yours, and we look forward to seeing you.",
                "All right, I've written it down. See you then.",
            ),
        ),
        closing=(THANKS,),
        summary="{asker} books a table for {number} people on {day} evening at {hour} o'clock.",
        paraphrases=(
            "{helper} helps {asker} book a table for {number} people at {hour} o'clock on {day} evening.",
            "{asker} calls a restaurant to book a table for {number} for {day} evening at {hour}.",
            "{asker} would like a table for {number} on {day} at {hour} o'clock, and {helper} has one.",
        ),
    ),
    Scenario(
        topic="see the doctor",
        slots={
            "illness": ("a headache", "a cough", "a fever", "a cold", "a bad back"),
            "day": WEEKDAYS,
            "hour": WORK_HOURS,
        },
        opening=(
            "Good morning, Doctor Brown's office.",
            "Good morning. How can I help you?",
        ),
        turns=(
            (
                "Hello, I'd like to see the doctor. I've had {illness} for a few days.",
                "Good morning. I have {illness}, and I need to see the doctor.",
                "Hello. I feel very ill. I have {illness} and can't sleep.",
            ),
            (
                "I'm sorry to hear that. Can you come on {day}?",
                "Oh dear. The doctor is free on {day}. Is that all right?",
                "You poor thing. Could you be here on {day}?",
            ),
            (
                "Yes, {day} is fine. At what time should I be there?",
                "Yes, I can come on {day}. What time is good for you?",
            ),
            (
                "Please come at {hour} o'clock and bring your card.",
                "How about {hour} o'clock? Until then, drink a lot of hot tea and rest.",
                "The doctor can see you at {hour} o'clock. Please be on time.",
            ),
        ),
        closing=(
            ("Thank you. I'll be there.", "All right, thank you."),
            ("You're welcome. I hope you feel better soon.", "Goodbye, and get well soon."),
        ),
        summary="{asker} has {illness} and will see the doctor on {day} at {hour} o'clock.",
        paraphrases=(
            "{helper} tells {asker}, who has {illness}, to come to the doctor on {day} at {hour} o'clock.",
            "{asker} doesn't feel well because of {illness} and can see the doctor at {hour} o'clock on {day}.",
            "{asker} needs a doctor because of {illness}, and {helper} finds a time on {day} at {hour}.",
        ),
    ),
    Scenario(
        topic="lost and found",
        slots={
            "thing": ("bag", "suitcase", "umbrella", "coat", "hat"),
            "colour": COLOURS,
            "place": ("on the train", "on the bus", "in the waiting room", "in a taxi"),
        },
        opening=(
            "Good afternoon. You look worried. Can I help you?",
            "Lost and found office. What can I do for you?",
        ),
        turns=(
            (
                "Hello, I've lost my {thing}. Has anyone found it?",
                "Excuse me, I can't find my {thing} anywhere.",
                "I have a problem. I've lost my {thing}.",
            ),
            (
                "I'm sorry to hear that. What colour is it?",
                "Let me see. What does it look like?",
            ),
            (
                "It's {colour} and quite new.",
                "It's a {colour} one, and it has my name in it.",
                "It's big and {colour}.",
            ),
            (
                "And where did you see it last?",
                "All right. Do you know where you left it?",
            ),
            (
                "I think I left it {place} this morning.",
                "I'm afraid I left it {place} about an hour ago.",
            ),
            (
                "Please write down your phone number. I'll call you soon.",
                "I'll ask about it and call you this evening.",
            ),
        ),
        closing=(THANKS,),
        summary="{asker} left a {colour} {thing} {place} and asks {helper} for help.",
        paraphrases=(
            "{asker} has lost a {colour} {thing} {place}, and {helper} will try to find it.",
            "{helper} will call {asker}, who left a {colour} {thing} {place}.",
            "{asker} tells {helper} about a {colour} {thing} that was left {place}.",
        ),
    ),
    Scenario(
        topic="job interview",
        slots={
            "job": ("driver", "waiter", "teacher", "cook", "nurse"),
            "number": NUMBERS,
            "day": WEEKDAYS,
        },
        opening=(
            "Good morning. Please come in and sit down.",
            "Hello, thank you for coming in today.",
        ),
        turns=(
            (
                "Good morning. I've come about the job as a {job}.",
                "Hello, I'm here for the interview. I'd like to work as a {job}.",
            ),
            (
                "Nice to meet you. Have you done this kind of work before?",
                "Very good. Tell me, have you done this work before?",
            ),
            (
                "Yes, I was a {job} for {number} years.",
                "Yes, I've worked as a {job} for {number} years, and I like it.",
                "Yes, I have. I was a {job} in a big town for {number} years.",
            ),
            (
                "That sounds good. When can you start?",
                "That's just what we need. When could you start?",
                "I think you'll like it here. When can you begin?",
            ),
            (
                "I could start on {day}, if you like.",
                "I can start next {day}.",
                "I'm free, so I can start on {day}.",
            ),
            (
                "Wonderful. I'll call you tomorrow.",
                "Great. You'll hear from us very soon.",
            ),
        ),
        closing=(("Thank you. It was nice to meet you.", "Thank you for your time."),),
        summary="{helper} interviews {asker}, who worked as a {job} for {number} years and can start on {day}.",
        paraphrases=(
            "{asker} would like a job as a {job}, has done it for {number} years and can start on {day}.",
            "At the interview, {asker} tells {helper} about {number} years as a {job} and could start on {day}.",
            "{asker}, a {job} for {number} years, has an interview with {helper} and is free from {day}.",
        ),
    ),
    Scenario(
        topic="buy clothes",
        slots={
            "item": ("shoes", "boots", "gloves", "jeans", "socks"),
            "colour": COLOURS,
            "price": PRICES,
        },
        opening=(
            "Good afternoon. Can I help you?",
            "Hello. What can I do for you?",
        ),
        turns=(
            (
                "Hello, I'm looking for a pair of {item}.",
                "I need a new pair of {item} for the winter.",
                "Good afternoon. Do you have any good {item}?",
            ),
            (
                "We have a lot of {item}. What colour would you like?",
                "You've come to the right shop. Which colour do you want?",
                "They're over here. Do you have a colour in mind?",
            ),
            (
                "I'd like {colour} ones, if you have them.",
                "I think I'd like a {colour} pair.",
                "Could you show me some {colour} ones, please?",
            ),
            (
                "Here you are. They're very good and cost {price} dollars.",
                "How about these? This pair is {price} dollars.",
            ),
            (
                "I like them very much. I'll take them.",
                "They fit me very well, so I'll take them.",
                "They look very nice. I'll take them.",
            ),
        ),
        closing=(
            ("Good. You can pay over there, please.", "Wonderful. Would you like a bag for them?"),
            ("All right, thank you.", "Fine, thanks for your help."),
        ),
        summary="{asker} buys a pair of {colour} {item} from {helper} for {price} dollars.",
        paraphrases=(
            "{helper} sells {asker} a pair of {colour} {item} for {price} dollars.",
            "{asker} is looking for {colour} {item} and takes a pair that costs {price} dollars.",
            "{helper} shows {asker} some {colour} {item}, and {asker} pays {price} dollars for them.",
        ),
    ),
    Scenario(
        topic="return a product",
        slots={
            "product": ("radio", "camera", "heater", "toaster", "fan"),
            "fault": ("won't turn on", "gets too hot", "makes a strange noise", "stops all the time"),
            "offer": ("a new one", "a full refund", "a gift card"),
        },
        opening=(
            "Good morning. What can I do for you?",
            "Good afternoon. How can I help you?",
        ),
        turns=(
            (
                "Hello, I bought this {product} here last week, but it {fault}.",
                "Hello, I'd like to return this {product}. It's new, but it {fault}.",
                "I have a problem with this {product}. It {fault}.",
            ),
            (
                "I'm very sorry about that. Do you have the receipt?",
                "Oh dear, I'm sorry. Can you show me the receipt, please?",
                "That shouldn't happen. Did you bring the receipt with you?",
            ),
            (
                "Yes, here it is. Could I have {offer}, please?",
                "Yes, I have it here. I would like {offer}, please.",
            ),
            (
                "Of course, you can have {offer}. Please wait here for a minute.",
                "That's no problem. I'll give you {offer} right away.",
            ),
        ),
        closing=(THANKS, ("You're welcome. I'm sorry again.", "No problem. Goodbye.")),
        summary="{asker} returns a {product} because it {fault}, and {helper} gives {asker} {offer}.",
        paraphrases=(
            "{asker} has a {product} that {fault} and gets {offer} from {helper}.",
            "{asker} brings back a {product} that {fault} and would like {offer}.",
            "{helper} gives {asker} {offer} because the {product} that {asker} bought {fault}.",
        ),
    ),
    Scenario(
        topic="hotel check-in",
        slots={"name": NAMES, "kind": ("single", "double", "family"), "number": NUMBERS},
        opening=(
            "Good evening. Can I help you?",
            "Good evening, and welcome to the Park Hotel.",
        ),
        turns=(
            (
                "Good evening. My name is {name} Hill, and I've booked a room.",
                "Hello, I'm {name} Hill. You have a room for me.",
            ),
            (
                "Just a moment. Yes, it's a {kind} room. How long will you stay?",
                "Let me see. It's a {kind} room. For how many nights are you here?",
            ),
            (
                "I'll stay for {number} nights. Can I have breakfast here?",
                "For {number} nights, please. Can I get breakfast in the hotel?",
            ),
            (
                "Yes, there is breakfast every morning. Here is your key.",
                "Of course, breakfast is free. This is your key.",
                "Of course, with fresh bread and coffee. Take your key, please.",
            ),
        ),
        closing=(
            ("Thank you. Good night.", "Great, thank you very much."),
            ("Good night. Have a nice time here.", "You're welcome. Sleep well."),
        ),
        summary="{helper} checks {name} into a {kind} room at the hotel for {number} nights.",
        paraphrases=(
            "{name} comes to the hotel and gets a {kind} room from {helper} for {number} nights.",
            "{name} has booked a {kind} room and will stay at the hotel for {number} nights.",
            "{helper} gives {name} the key to a {kind} room for {number} nights.",
        ),
    ),
    Scenario(
        topic="ask the way",
        slots={
            "place": ("station", "museum", "bank", "market", "post office"),
            "side": ("left", "right"),
            "landmark": ("at the bridge", "at the church", "at the school", "at the hotel", "at the lights"),
        },
        opening=(
            "Hello, you look lost. Can I help you?",
            "Hello. Are you looking for something?",
        ),
        turns=(
            (
                "Excuse me, could you tell me the way to the {place}?",
                "I'm new in town. How do I get to the {place}?",
                "Excuse me, I can't find the {place}. Do you know where it is?",
            ),
            (
                "Go down this street and turn {side} {landmark}.",
                "Walk down this road, and then turn {side} {landmark}.",
                "It's easy to find. Just turn {side} {landmark}.",
            ),
            (
                "So I turn {side} there. Is it far to walk?",
                "Turn {side} {landmark}. I see. Is it far from here?",
            ),
            (
                "No, you'll be there in a few minutes.",
                "No, and you'll see a tall white building in front of you.",
                "Not at all. It's just a short walk.",
            ),
        ),
        closing=(THANKS, WELCOME),
        summary="{helper} tells {asker} to turn {side} {landmark} to get to the {place}.",
        paraphrases=(
            "{asker} asks {helper} the way to the {place} and has to turn {side} {landmark}.",
            "{asker} can't find the {place}, so {helper} says to turn {side} {landmark}.",
            "To get to the {place}, {asker} has to turn {side} {landmark}, {helper} says.",
        ),
    ),
    Scenario(
        topic="plan a party",
        slots={
            "name": NAMES,
            "day": DAYS,
            "food": ("a cake", "some pizza", "some fruit", "some drinks", "a salad"),
        },
        opening=(
            "Hi, you look happy. What is it?",
            "Hello. What are you thinking about?",
        ),
        turns=(
            (
                "It's {name}'s birthday on {day}. Shall we have a party?",
                "You know, {name} has a birthday on {day}. Let's have a party.",
                "I'd like to have a birthday party for {name} on {day}.",
            ),
            (
                "That's a great idea. What can I do?",
                "That sounds like fun. How can I help you?",
                "Good thinking. Is there anything that I can do?",
            ),
            (
                "I'll ask all our friends to come. Could you bring {food}?",
                "Could you bring {food}? I'll ask our friends to come.",
            ),
            (
                "Of course, I'll bring {food}. Does {name} know about it?",
                "Yes, that's no problem. Have you told {name} about it?",
            ),
            (
                "No, so please don't tell {name}.",
                "No, it's a surprise. I want to see that happy face.",
                "No, so please don't say anything.",
            ),
        ),
        closing=(
            ("Don't worry. I won't tell anyone.", "All right, I won't say anything."),
            ("Good. See you on {day}.", "Thanks. It'll be a great party."),
        ),
        summary="{asker} plans a birthday party for {name} on {day}, and {helper} will bring {food}.",
        paraphrases=(
            "{asker} wants to have a party for {name} on {day}, and {helper} will bring {food}.",
            "{helper} will bring {food} to the birthday party that {asker} plans for {name} on {day}.",
            "It's {name}'s birthday on {day}, so {asker} asks {helper} to bring {food} to the party.",
        ),
    ),
    Scenario(
        topic="homework help",
        slots={
            "subject": ("maths", "English", "history", "science", "French"),
            "day": WEEKDAYS,
            "when": ("after school", "after lunch", "after dinner", "this afternoon"),
        },
        opening=(
            "Hi, you look worried. What's the problem?",
            "Hello, how was school today?",
        ),
        turns=(
            (
                "I can't do my {subject} homework. It's too hard for me.",
                "We have so much {subject} homework, and I don't know how to start.",
                "My {subject} homework is so hard. Could you help me with it?",
            ),
            (
                "Don't worry, I can help you. When do you have to finish it?",
                "I like {subject}, so I'll help you. When does it have to be ready?",
                "Let me have a look. Oh yes, I know this. When do you need it?",
            ),
            (
                "I have to finish it by {day}.",
                "My teacher wants to have it by {day}.",
                "It has to be on the teacher's desk by {day}.",
            ),
            (
                "All right. Let's do it together {when}.",
                "That's soon. I have time {when}, so we can do it together.",
            ),
            (
                "Thank you so much. You're a good friend.",
                "Great, that's very kind. I feel better now.",
            ),
        ),
        closing=(("You're welcome. Bring your books with you.", "No problem. See you soon."),),
        summary="{helper} will help {asker} {when} with the {subject} homework, which has to be ready by {day}.",
        paraphrases=(
            "{asker} has to finish the {subject} homework by {day}, and {helper} will help {when}.",
            "{asker} can't do the {subject} homework for {day}, so they will do it together {when}.",
            "{asker} has a problem with {subject} homework for {day}, and {helper} has time to help {when}.",
        ),
    ),
    Scenario(
        topic="take a taxi",
        slots={
            "place": ("airport", "station", "museum", "hospital"),
            "hour": WORK_HOURS,
            "price": PRICES,
        },
        opening=(
            "Hello. Do you need a taxi?",
            "Good morning. Where would you like to go?",
        ),
        turns=(
            (
                "Hello, I need to go to the {place}, please.",
                "Good morning. Can you take me to the {place}, please?",
                "To the {place}, please. I don't have much time.",
            ),
            (
                "Of course. When do you have to be there?",
                "Please get in. What time do you need to be there?",
            ),
            (
                "I have to be there by {hour} o'clock.",
                "By {hour} o'clock. Is there enough time?",
            ),
            (
                "Don't worry, we'll be there in time.",
                "I know a quick way, so you won't miss anything.",
                "That's no problem. There aren't many cars on the road.",
            ),
            (
                "Good. How much will it cost?",
                "I'm glad to hear that. How much is it?",
            ),
            (
                "It will be {price} dollars, please.",
                "It costs {price} dollars, and you can pay by card.",
            ),
        ),
        closing=(("All right, thank you.", "That's fine. Let's go."),),
        summary="{helper} will take {asker} to the {place} by {hour} o'clock for {price} dollars.",
        paraphrases=(
            "{asker} takes a taxi to the {place} for {price} dollars and has to be there by {hour}.",
            "{asker} needs a taxi to be at the {place} by {hour} o'clock, and it costs {price} dollars.",
            "{asker} will pay {helper} {price} dollars to get to the {place} by {hour} o'clock.",
        ),
    ),
    Scenario(
        topic="picnic and weather",
        slots={
            "day": DAYS,
            "weather": ("cold", "windy", "wet", "hot"),
            "place": ("the museum", "the cinema", "the swimming pool", "the new library"),
        },
        opening=(
            "Hi, do you have any plans for this week?",
            "Hello. What shall we do this week?",
        ),
        turns=(
            (
                "I'd like to have a picnic on {day}. Do you want to come?",
                "Shall we have a picnic in the park on {day}?",
                "Let's have a picnic on {day}. I'll bring some fruit.",
            ),
            (
                "I'd love to, but it will be too {weather} for that.",
                "Have you read the newspaper? It's going to be too {weather}.",
                "That would be nice, but I hear it'll be very {weather} on {day}.",
            ),
            (
                "Oh dear, I didn't know that. What shall we do then?",
                "Too {weather} for a picnic? Do you have a better idea?",
            ),
            (
                "Why don't we go to {place}?",
                "We could go to {place} together.",
                "Let's go to {place}.",
            ),
            (
                "That's a great idea. I'd like that very much.",
                "Wonderful. My little sister can come with us.",
                "All right, that sounds like fun.",
            ),
        ),
        closing=(
            ("Good. I'll call you in the morning.", "Great. Let's meet there after lunch."),
            ("Fine, see you on {day}.", "Thanks. See you then."),
        ),
        summary="{asker} wants a picnic on {day}, but it will be too {weather}, so they will go to {place}.",
        paraphrases=(
            "{asker} will go to {place} with {helper} on {day} because it's too {weather} for a picnic.",
            "{helper} wants to go to {place} on {day} because it will be too {weather} for a picnic.",
            "It will be {weather} on {day}, so {asker} plans to go to {place} with {helper}.",
        ),
    ),
    Scenario(
        topic="rent a flat",
        slots={
            "rooms": ("two", "three", "four"),
            "area": ("near the park", "near the station", "near the school", "near the market", "near the river"),
            "rent": ("five hundred", "six hundred", "seven hundred", "eight hundred"),
        },
        opening=(
            "Good morning. What can I do for you?",
            "Hello. How can I help you?",
        ),
        turns=(
            (
                "Hello, I'm looking for a flat {area}.",
                "Good morning. I'd like to rent a flat {area}.",
            ),
            (
                "We have some very nice ones there. How many rooms do you need?",
                "Let me see what we have. How many rooms would you like?",
            ),
            (
                "I need {rooms} rooms and a big kitchen.",
                "I have children and a dog, so I need {rooms} rooms.",
                "We're a family, so we need {rooms} rooms.",
                "I'd like {rooms} rooms, please.",
            ),
            (
                "Here is one for {rent} dollars a month. Do you like it?",
                "I've found one. The rent is {rent} dollars a month.",
            ),
            (
                "It sounds fine. I'd like to see it tomorrow.",
                "That's not too much. I'd like to see it.",
            ),
        ),
        closing=(
            ("Of course. I'll meet you there.", "Good. I'll show it to you."),
            ("Thank you very much.", "Great, thank you for your help."),
        ),
        summary="{helper} finds {asker} a flat with {rooms} rooms {area} for {rent} dollars a month.",
        paraphrases=(
            "{asker} wants to see a flat {area} that has {rooms} rooms and costs {rent} dollars a month.",
            "{asker} is looking for {rooms} rooms {area}, and {helper} has a flat for {rent} dollars.",
            "{helper} tells {asker} about a flat {area} with {rooms} rooms and a rent of {rent} dollars.",
        ),
    ),
    Scenario(
        topic="borrow a book",
        slots={
            "subject": ("animals", "trains", "cooking", "history", "music"),
            "where": ("on the first floor", "on the second floor", "near the door", "near the window"),
            "weeks": ("two", "three", "four", "five", "six"),
        },
        opening=(
            "Good morning. Are you looking for a book?",
            "Hello, welcome to the library. Can I help you?",
        ),
        turns=(
            (
                "Good morning. I'm looking for a book about {subject}.",
                "Hello, I'd like to borrow a book about {subject}.",
                "Excuse me, do you have any books about {subject}?",
            ),
            (
                "Those books are {where}. Do you have a library card?",
                "Our books about {subject} are {where}. Do you have a card?",
            ),
            (
                "Yes, here is my card. How long can I keep a book?",
                "Yes, I do. For how long can I have a book?",
            ),
            (
                "You can keep it for {weeks} weeks. After that you have to pay.",
                "You have {weeks} weeks to read it. I hope you'll enjoy it.",
                "For {weeks} weeks. Please bring it back in time.",
            ),
        ),
        closing=(THANKS, WELCOME),
        summary="{helper} tells {asker} that books about {subject} are {where} and can be kept for {weeks} weeks.",
        paraphrases=(
            "{asker} can borrow a book about {subject} for {weeks} weeks and will find it {where}.",
            "{asker} asks {helper} for books about {subject}, which are {where}, and may keep one for {weeks} weeks.",
            "{helper} says that books about {subject} are {where} and {asker} can have one for {weeks} weeks.",
        ),
    ),
    Scenario(
        topic="phone message",
        slots={"name": NAMES, "day": WEEKDAYS, "hour": WORK_HOURS},
        opening=(
            "Good morning, this is the school office.",
            "Hello, Brown and Hill. How can I help you?",
        ),
        turns=(
            (
                "Hello, can I speak to {name}, please?",
                "Good morning. Is {name} there, please?",
            ),
            (
                "I'm sorry, but {name} isn't here. Can I take a message?",
                "I'm afraid {name} is out. Would you like to leave a message?",
            ),
            (
                "Yes, please. Our meeting will be on {day} at {hour} o'clock.",
                "Yes. Please say that the meeting is on {day} at {hour} o'clock.",
            ),
            (
                "I've written it down. I'll tell {name} as soon as I can.",
                "Thanks for calling. I'll put a note on the desk for {name}.",
                "All right, on {day} at {hour} o'clock. I'll give {name} your message.",
            ),
        ),
        closing=(THANKS, WELCOME),
        summary="{asker} asks {helper} to tell {name} that the meeting is on {day} at {hour} o'clock.",
        paraphrases=(
            "{asker} leaves a message for {name} that the meeting will be on {day} at {hour} o'clock.",
            "{helper} takes a message for {name} about a meeting on {day} at {hour} o'clock.",
            "{name} is out, so {helper} will give {name} {asker}'s message about the meeting on {day} at {hour}.",
        ),
    ),
    Scenario(
        topic="go to the cinema",
        slots={
            "name": NAMES,
            "film": ("a comedy", "a love story", "a cartoon", "a spy film"),
            "day": DAYS,
        },
        opening=(
            "Hi, it's nice to see you.",
            "Hello. What are your plans for this week?",
        ),
        turns=(
            (
                "Hi, {name}. There is {film} at the cinema. Would you like to see it?",
                "Hello, {name}. Shall we go to the cinema? I'd like to see {film}.",
                "{name}, let's go to the cinema. I want to see {film}.",
            ),
            (
                "I'd love to. When do you want to go?",
                "That sounds like fun. When are you free?",
            ),
            (
                "How about {day}? I don't have to work then.",
                "I'm free on {day}. Is that all right?",
            ),
            (
                "Yes, {day} is fine. Where shall we meet?",
                "I have time on {day}. Where do you want to meet?",
            ),
            (
                "Let's meet at the station, and then we can walk.",
                "In front of the cinema. I'll buy the tickets and some popcorn.",
                "Come to my house, and we'll take the bus.",
            ),
        ),
        closing=(
            ("Great. See you there.", "All right, I'll be there."),
            ("See you on {day}, {name}.", "Good. Don't be late, {name}."),
        ),
        summary="{asker} asks {name} to see {film} at the cinema on {day}, and {name} agrees.",
        paraphrases=(
            "{name} will go to the cinema with {asker} on {day} to see {film}.",
            "{asker} and {name} plan to meet on {day} and see {film} at the cinema.",
            "{asker} would like to see {film}, and {name} has time to go to the cinema on {day}.",
        ),
    ),
    Scenario(
        topic="do some sport",
        slots={
            "sport": ("swimming", "running", "dancing", "climbing", "skating"),
            "day": DAYS,
            "part": ("morning", "afternoon", "evening"),
        },
        opening=(
            "Hi, you look tired. How are you?",
            "Hello, how are you today?",
        ),
        turns=(
            (
                "I don't feel very fit. I think I need to do some sport.",
                "I'm always tired. I want to do some sport and get fit.",
                "I sit in the office all day, and I want to get fit.",
            ),
            (
                "Why don't you go {sport} with me? It's a lot of fun.",
                "You could go {sport} with me. You'll like it.",
                "Come and try {sport} with my sister and me.",
            ),
            (
                "That's a good idea. When do you go {sport}?",
                "I'd love to. When do you have time for that?",
            ),
            (
                "I go every {day} {part}. Is that all right for you?",
                "I always go on {day} {part}. Do you have time then?",
            ),
            (
                "Yes, I'm free then. I'll come with you.",
                "That's perfect. I only have to buy some sports clothes.",
                "Yes, that's fine. Let's go together.",
            ),
        ),
        closing=(
            ("Great. I'll meet you at your house.", "Good. We'll have a lot of fun."),
            ("Thanks. See you on {day}.", "All right, see you then."),
        ),
        summary="{asker} wants to get fit and will go {sport} with {helper} on {day} {part}.",
        paraphrases=(
            "{helper} will take {asker}, who wants to get fit, {sport} on {day} {part}.",
            "{asker} needs some sport, so {helper} will go {sport} with {asker} on {day} {part}.",
            "{asker} will go {sport} on {day} {part} with {helper} to get fit.",
        ),
    ),
    Scenario(
        topic="cook dinner",
        slots={
            "dish": ("fish", "chicken", "soup", "pasta", "rice"),
            "ingredient": ("onions", "tomatoes", "carrots", "potatoes", "lemons"),
            "hour": EVENING_HOURS,
        },
        opening=(
            "Hello, I'm home. What are you doing in the kitchen?",
            "Hi. What shall we have for dinner?",
        ),
        turns=(
            (
                "I'm going to cook {dish} for dinner tonight.",
                "I'd like to make {dish} for dinner tonight.",
                "Let's have {dish} tonight. I'll cook it for us.",
            ),
            (
                "That sounds wonderful. Do you need anything from the shop?",
                "Great, I love {dish}. Do we have everything you need?",
            ),
            (
                "We don't have any {ingredient}. Could you buy some?",
                "I still need some {ingredient}. Can you go and get them?",
            ),
            (
                "Of course, I'll buy some {ingredient}. What time will dinner be ready?",
                "Sure, I'll get some {ingredient} on my bike. When can we sit down and eat?",
                "No problem, I'll go to the shop. What time do we eat?",
            ),
            (
                "We can eat at {hour} o'clock.",
                "It will be ready at {hour} o'clock, so don't be late.",
            ),
        ),
        closing=(
            ("Good. I'll be back soon.", "Great. I'll go right away."),
            ("Thanks. See you soon.", "Thank you for your help."),
        ),
        summary="{asker} will cook {dish} for dinner at {hour} o'clock, and {helper} will buy {ingredient}.",
        paraphrases=(
            "{helper} will get {ingredient} from the shop for {asker}, who will make {dish} for {hour} o'clock.",
            "{asker} will make {dish} for {hour} o'clock, but {helper} has to buy {ingredient} first.",
            "{asker} is going to make {dish} for {hour} o'clock and asks {helper} to buy some {ingredient}.",
        ),
    ),
    Scenario(
        topic="computer problem",
        slots={
            "device": ("computer", "laptop", "printer", "phone"),
            "fault": ("won't turn on", "is very slow", "makes a strange noise", "stops all the time"),
            "day": DAYS,
        },
        opening=(
            "Hello, you look worried. What is it?",
            "Hi. What can I do for you?",
        ),
        turns=(
            (
                "I have a problem with my {device}. It {fault}.",
                "Can you have a look at my {device}, please? It {fault}.",
                "I need your help with my {device}. It {fault}.",
            ),
            (
                "Let me see. When did the problem start?",
                "I'm sorry to hear that. How long has it been like that?",
            ),
            (
                "It started last week, and I need it for my work.",
                "It fell off the table just last week.",
                "It started last week. Do you think you can repair it?",
            ),
            (
                "Leave it with me. I'll repair it by {day}.",
                "It's an old one, but I can repair it by {day}.",
                "I think I can repair it for you by {day}.",
            ),
            (
                "By {day}? Wonderful, I'm so glad.",
                "That's very kind of you. I'll be happy to have it back.",
            ),
        ),
        closing=(
            ("I'll tell you when it's ready.", "No problem. I like that kind of work."),
            ("All right. Goodbye.", "Thank you. See you then."),
        ),
        summary="{helper} will repair {asker}'s {device} by {day} because it {fault}.",
        paraphrases=(
            "{asker} has a {device} that {fault}, and {helper} can repair it by {day}.",
            "{asker}'s {device} {fault}, so {helper} will have a look at it and repair it by {day}.",
            "{asker} leaves a {device} that {fault} with {helper} until {day}.",
        ),
    ),
    Scenario(
        topic="late for work",
        slots={
            "name": NAMES,
            "reason": (
                "the bus was late",
                "the car broke down",
                "the road was closed",
                "the train was slow",
                "the alarm didn't ring",
            ),
            "hour": EVENING_HOURS,
        },
        opening=(
            "Good morning. You're late again.",
            "Do you know what time it is?",
        ),
        turns=(
            (
                "I'm very sorry. I know that I'm late.",
                "Good morning. I'm so sorry that I'm late for work.",
                "Please excuse me. I couldn't be here in time.",
            ),
            (
                "The meeting started an hour ago, {name}. What was the problem?",
                "We needed you at the meeting, {name}. Where were you?",
                "{name}, everybody was waiting for you. What happened?",
            ),
            (
                "I couldn't get here sooner because {reason}.",
                "I'm late because {reason}. I couldn't call you.",
            ),
            (
                "I see. Then you'll have to stay until {hour} o'clock tonight.",
                "These things happen, but please stay until {hour} o'clock today.",
                "All right, but you have to work until {hour} o'clock this evening.",
            ),
            (
                "Of course, until {hour} o'clock. I won't be late again.",
                "That's fine. I promise to be on time tomorrow.",
            ),
        ),
        closing=(("I'm glad to hear that. Now let's start.", "Good. Now let's get to work."),),
        summary="{name} is late because {reason}, and {helper} tells {name} to stay until {hour} o'clock.",
        paraphrases=(
            "{name} tells {helper} that {reason} and now has to work until {hour} o'clock.",
            "{helper} wants {name}, who is late because {reason}, to work until {hour} o'clock.",
            "{name} is late for work because {reason} and has to stay until {hour} o'clock.",
        ),
    ),
)
